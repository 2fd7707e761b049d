"""crystalmix: build, prove and train on data mixtures.

What was fed, in which proportion, and exactly when: `import crystalmix as cm`, then `cm.build`,
`cm.open`, `cm.verify`, `cm.train` and what else `__all__` names; docs/python.md has an example of
each. Names are loaded when they are first used (PEP 562), so that the import is quick.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crystalmix.prep.engines.engine import EngineSettings
    from crystalmix.train.api.ablations import Ablation, ablate, ablation_cost, fit_laws
    from crystalmix.train.api.answering import (
        audit,
        card,
        check_evidence,
        fork,
        rebuild_without,
        redact,
        report,
        serve,
    )
    from crystalmix.train.api.chat import Reply, chat
    from crystalmix.train.api.checks import Differences, ShardVerdict, diff, verify
    from crystalmix.train.api.copies import Copy, copy
    from crystalmix.train.api.data import (
        Collected,
        build,
        export_rows,
        gc,
        import_shards,
        import_tokens,
        jsonl,
        merge,
        migrate,
        mix,
        plan,
    )
    from crystalmix.train.api.ledgers import Ledger, fed
    from crystalmix.train.api.modelzoo import (
        convert_checkpoint,
        harvest,
        validate_step,
        write_params,
    )
    from crystalmix.train.api.opened import Build, Phase, Run, open, show  # noqa: A004
    from crystalmix.train.api.purges import purge
    from crystalmix.train.api.runs import (
        Forecast,
        adapt,
        drop_list,
        evaluate,
        export,
        forecast,
        import_weights,
        push,
        release,
        sql,
        trace,
        train,
    )
    from crystalmix.train.demo.demo import demo
    from crystalmix.train.trace.answers import Table, Verdict

__version__ = "0.1.0"
__all__ = ["Ablation", "Build", "Collected", "Copy", "Differences", "EngineSettings", "Forecast"]
__all__ += ["Ledger", "Phase", "Reply", "Run", "ShardVerdict", "Table", "Verdict", "ablate"]
__all__ += ["ablation_cost", "adapt", "audit", "build", "card", "chat", "check_evidence"]
__all__ += ["convert_checkpoint", "copy", "demo", "diff", "drop_list", "evaluate", "export"]
__all__ += ["export_rows", "fed", "fit_laws", "forecast", "fork", "gc", "harvest", "import_shards"]
__all__ += ["import_tokens", "import_weights", "jsonl", "merge", "migrate", "mix", "open", "plan"]
__all__ += ["purge", "push", "rebuild_without", "redact", "release", "report", "serve", "show"]
__all__ += ["sql", "trace", "train", "validate_step", "verify", "write_params"]


@cache
def _names() -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    # Not above: test runners import this file from environments that have no crystalmix.
    from crystalmix.prep.runtime.lazy_names import lazy_names

    return lazy_names(__name__)


def __getattr__(name: str) -> object:
    """Load a name of the face when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # `train` is a floor of the house, too: a package that can be called
    return import_module("crystalmix.train") if name == "train" else _names()[0](name)


def __dir__() -> list[str]:
    """List the face, loaded or not."""
    return _names()[1]()
