"""A training session: the phases of a build, one run file, one output folder."""

from collections.abc import Callable, Sequence
from os.path import relpath
from pathlib import Path

from mixtures.manifest import Manifest
from mixtures.report import read_manifests
from prep import receipts
from prep.errors import DamageError, InputError, UsageError
from train import checkpoint
from train import run as runs
from train.loop import Outcome, Trainer

WHERE = "build.json"


def train(
    build: Path,
    run_file: str,
    out: Path,
    *,
    phases: Sequence[str] = (),
    stop: int | None = None,
    say: Callable[[str], object],
) -> None:
    """Train phases in order, each from the last weights of the one before; resume what is there.

    Raises InputError where there is no build, or where a phase's predecessor is not trained yet.
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
    path = runs.find(run_file)
    remember(out, build)
    for place, manifest in enumerate(manifests):
        if phases and manifest.phase not in phases:
            continue
        before = _last_weights(out, manifests[place - 1]) if place else None
        trainer = Trainer(runs.load(path, manifest.phase), manifest, build, out / manifest.phase)
        say(_line(manifest, trainer.train(before, stop)))


def remember(out: Path, build: Path) -> None:
    """Write down where the run's build is, relative to the run."""
    where = {"build": relpath(build.resolve(), out.resolve())}
    receipts.write_atomic(out / WHERE, receipts.canonical(where))


def build_of(run: Path, build: Path | None) -> Path:
    """Return a run's build: the one given, or the one it remembers."""
    if build is not None:
        return build
    if not (run / WHERE).exists():
        raise InputError(f"{run}: holds no run; give the --out of `crystalmix train`")
    found = run / receipts.read_json(run / WHERE)["build"]
    if not found.is_dir():
        raise DamageError(f"{run}: its build is not at {found}; say where with --build")
    return found.resolve()


def _last_weights(out: Path, before: Manifest) -> Path:
    newest = checkpoint.latest(out / before.phase / "checkpoints")
    wanted = checkpoint.name(before.steps)
    if newest is None or newest.name != wanted:
        raise InputError(
            f"{out}: phase {before.phase} is not trained to its end "
            f"(newest checkpoint: {newest.name if newest else 'none'}, needed: {wanted}); "
            "train it first"
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
