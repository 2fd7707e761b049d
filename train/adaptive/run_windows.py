"""The run of windows: seal a window by the ledger so far, train it, and so on to the phase's end.

The windows' manifests lie in the run's own `build`, a folder of links to the build and of phases.
Each window begins with the weights and the optimiser's moments of the one before, and goes on in
the phase's learning-rate schedule, so that a constant policy is the phase cut into windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from crystalmix.mixtures.ablations.pool_of_build import view
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read, read_manifests, state_with
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError, UsageError
from crystalmix.train.adaptive import windows
from crystalmix.train.adaptive.policy import Policy, Window
from crystalmix.train.evaluation import evaluate
from crystalmix.train.evaluation.held_out import is_held_out
from crystalmix.train.model.processes import joined
from crystalmix.train.record.run_folder import STATE, PhaseFolder
from crystalmix.train.runfile.run_file import find, load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import task_results
from crystalmix.train.trainer.trainer import Trainer

VIEW = "build"


def train_adaptive(  # noqa: PLR0913  what the command has
    build: Path,
    run_file: str,
    out: Path,
    policy: Policy,
    *,
    phase: str,
    stop: int | None = None,
    init_from: Path | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Train a phase in windows; what is done is not done again. Return the run's own build.

    stop: end after this many steps of the phase. init_from: a checkpoint whose weights the first
    window begins with, in place of the last ones of the phase before where the run has trained it.
    Raises StaleError where the run holds windows of another policy or build.
    """
    with joined() as world:
        own = out / VIEW
        build = world.on_first(lambda: _begun_with(build, own, phase))
        base, before = world.on_first(lambda: _base(build, phase))
        start = init_from or world.on_first(lambda: _weights_before(build, out, before))
        stem = windows.stem_of(base)
        run = _evaluated_on(build, load(find(run_file), phase, [phase], overrides))
        evaluate.prepare(run.evaluation, [*before, base], build)
        task_results.prepare([run])
        done: list[Manifest] = []
        seen: list[Window] = []
        for number in range(stem.windows(policy)):
            manifest = world.on_first(
                lambda: _sealed(build, own, windows.compose(stem, policy, done, seen), before, done)
            )
            first_step = number * policy.steps
            last = manifest.steps if stop is None else min(manifest.steps, stop - first_step)
            if last <= 0:
                break
            start = _checkpoint(out, done[-1]) if done else start
            trainer = Trainer(run, manifest, own, out / manifest.phase, world)
            outcome = trainer.train(start, last)
            done.append(manifest)
            if world.first:
                shares = ", ".join(f"{part.name} {part.asked:.3f}" for part in manifest.parts)
                steps = f"steps {first_step} to {first_step + outcome.steps}"
                say(f"{manifest.phase}: {steps}, {shares}")
            if outcome.steps < manifest.steps:
                break
            ledger = PhaseFolder(out / manifest.phase).ledger
            seen.append(world.on_first(lambda: windows.recorded(manifest, ledger)))  # noqa: B023
    return own


def _evaluated_on(build: Path, run: Run) -> Run:
    """Return a run whose held-out phase is the build's; the windows' own build holds none."""
    if run.evaluation is None or run.evaluation.build is not None:
        return run
    return replace(run, evaluation=replace(run.evaluation, build=str(build)))


def _begun_with(build: Path, own: Path, phase: str) -> Path:
    """Return the build, or what it was when the first window was sealed."""
    first = BuildFolder(own).manifest(windows.name_of(phase, 0))
    return (
        state_with(build, {windows.stem_recorded(read(first)).digest}) if first.exists() else build
    )


def _base(build: Path, phase: str) -> tuple[Manifest, list[Manifest]]:
    """Return the phase that is cut into windows, and the phases before it."""
    every = read_manifests(build)
    names = [manifest.phase for manifest in every]
    if phase not in names:
        raise UsageError(f"no phase is called {phase!r} in {build} (there are {', '.join(names)})")
    base = every[names.index(phase)]
    if base.cerebras is not None:
        raise RefusalError(
            f"phase {phase}: has Model Zoo's order, whose parts can't go on; it has no windows"
        )
    if base.redaction is not None:
        raise RefusalError(
            f"phase {phase}: is redacted, a view of another phase's rows; it has no windows"
        )
    chain: list[Manifest] = []
    by_digest = {manifest.digest: manifest for manifest in every}
    previous = base.previous
    while previous in by_digest:
        chain.insert(0, by_digest[previous])
        previous = chain[0].previous
    return base, chain


def _weights_before(build: Path, out: Path, before: Sequence[Manifest]) -> Path | None:
    """Return the last weights of the phase before; None where the run has not begun with it."""
    trained = [manifest for manifest in before if not is_held_out(build, manifest)]
    if not trained or not PhaseFolder(out / trained[-1].phase).newest:
        return None
    last = _checkpoint(out, trained[-1])
    if not (last / STATE).exists():
        raise InputError(
            f"{last}: is missing, for phase {trained[-1].phase} is not trained to its end; "
            "train it first"
        )
    return last


def _sealed(
    build: Path, own: Path, manifest: Manifest, before: Sequence[Manifest], done: Sequence[Manifest]
) -> Manifest:
    """Seal a window, or compare it with what is sealed; return it as read."""
    path = BuildFolder(own).manifest(manifest.phase)
    if path.exists():
        sealed = read(path)
        if sealed.digest != manifest.digest:
            raise StaleError(
                f"{path}: is another window than the policy, the build and the ledger give; "
                "train into another --out"
            )
        return sealed
    view(build, [*before, *done, manifest], own)
    return read(path)


def _checkpoint(out: Path, window: Manifest) -> Path:
    return PhaseFolder(out / window.phase).checkpoint(window.steps)
