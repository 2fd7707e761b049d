"""A training session: the phases of a build, one run file, one output folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixtures.manifest import Manifest
from mixtures.report import read_manifests
from prep.errors import InputError, StaleError, UsageError
from train import folder, params
from train.loop import Outcome, Trainer


def train(
    build: Path,
    run_file: str,
    out: Path,
    *,
    phases: Sequence[str] = (),
    stop: int | None = None,
    say: Callable[[str], object],
    make: Callable[..., Any] = Trainer,
) -> None:
    """Train phases in order, each from the last weights of the one before; resume what is there.

    A phase that `stop` ends early is the last. make: makes the trainer of a phase from (run,
    manifest, build, folder). Raises InputError where there is no build, or where
    a phase's predecessor is not trained yet.
    """
    manifests = read_manifests(build)
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    names = [manifest.phase for manifest in manifests]
    unknown = sorted(set(phases) - set(names))
    if unknown:
        raise UsageError(
            f"no phase is called {unknown[0]!r} in {build} (there are {', '.join(names)})"
        )
    path = params.find(run_file)
    # All of them before the first step, so that a fault in the last phase's settings is told now.
    read = {name: params.load(path, name, names) for name in names if not phases or name in phases}
    for place, manifest in enumerate(manifests):
        if manifest.phase not in read:
            continue
        before = _last_weights(out, manifests[place - 1]) if place else None
        trainer = make(read[manifest.phase], manifest, build, out / manifest.phase)
        outcome = trainer.train(before, stop)
        say(_line(manifest, outcome))
        if outcome.steps < manifest.steps:
            return


def _last_weights(out: Path, before: Manifest) -> Path:
    newest = folder.latest(out / before.phase / "checkpoints")
    wanted = folder.checkpoint_name(before.steps)
    if newest is None or newest.name != wanted:
        raise InputError(
            f"{out}: phase {before.phase} is not trained to its end "
            f"(newest checkpoint: {newest.name if newest else 'none'}, needed: {wanted}); "
            "train it first"
        )
    trained = folder.read_state(newest)["manifest"]
    if trained != before.digest:
        raise StaleError(
            f"{newest}: was trained on manifest {trained[:12]}, this build's {before.phase} is "
            f"{before.digest[:12]}; give the build it was trained on, or train into another --out"
        )
    return newest


def _line(manifest: Manifest, outcome: Outcome) -> str:
    begun = f"resumed at step {outcome.first_step}" if outcome.first_step else "from step 0"
    if outcome.first_step >= outcome.steps:
        done = f"already trained, {outcome.steps} steps"
        return f"{manifest.phase}: {done}, weights {outcome.weights[:12]}"
    return (
        f"{manifest.phase}: {begun} to {outcome.steps} of {manifest.steps}, "
        f"loss {outcome.loss:.4f}, weights {outcome.weights[:12]}"
    )
