"""The command line: `crystalmix VERB`. Tables go to stdout, progress and notes to stderr.

Exit codes: 0 sound, 1 findings or failure, 2 usage. Each verb imports what it needs when it runs,
so that `--help` is quick.
"""

import os
import sys
from typing import Any

import click

from crystalmix import __version__
from crystalmix.train.commands import ablate as ablateverbs
from crystalmix.train.commands import csx as csxverbs
from crystalmix.train.commands import data as mixing
from crystalmix.train.commands import train as verbs
from crystalmix.train.commands import weights as weightverbs


class Verbs(click.Group):
    """Lists the verbs in the order of a workflow and turns our errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order they are defined."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  as click's
        """Run a verb; a CrystalmixError ends with its exit code and one line on stderr."""
        from crystalmix.prep.runtime.errors import CrystalmixError

        try:
            return super().invoke(ctx)
        except CrystalmixError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "safetensors"}:
                raise
            fail(f"{error.name} is not installed; install crystalmix with its extra `train`", 1)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            fail(f"{error.filename or 'output'}: {error.strerror}; mend it and run again", 1)
        except KeyboardInterrupt:
            fail("interrupted; run the same command again to go on", 130)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    click.echo(f"crystalmix: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="crystalmix")
def main() -> None:
    """Build, prove and train on data mixtures: what was fed, in which proportion, exactly when."""
    import logging

    logging.basicConfig(format="note: %(message)s", level=logging.WARNING, stream=sys.stderr)


for verb in (
    verbs.demo,
    mixing.plan,
    mixing.jsonl,
    mixing.build,
    mixing.import_,
    verbs.show,
    verbs.verify,
    mixing.diff,
    verbs.train,
    weightverbs.export,
    weightverbs.import_weights,
    verbs.trace,
    verbs.sql,
    ablateverbs.ablate,
    csxverbs.csx,
):
    main.add_command(verb)

if __name__ == "__main__":
    main()
