"""A training session: the phases of a build, one run file, one output folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.redaction import redact
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError, UsageError
from crystalmix.train.evaluation import evaluate, held_out
from crystalmix.train.model.processes import joined
from crystalmix.train.record import metrics, run_folder, skips
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.runfile import data_sections
from crystalmix.train.runfile.run_file import find, load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import task_results
from crystalmix.train.trainer.trainer import Outcome, Trainer

EXAMPLE = "run/phase1/checkpoints/step-00001500"


def train(  # noqa: PLR0913  what the command has
    build: Path,
    run_file: str,
    out: Path,
    *,
    phases: Sequence[str] = (),
    stop: int | None = None,
    init_from: Path | None = None,
    skip: Sequence[str] = (),
    overrides: Sequence[str] = (),
    say: Callable[[str], object],
    make: Callable[..., Any] = Trainer,
) -> None:
    """Train phases in order, each from the last weights of the one before; resume what is there.

    init_from: a checkpoint whose weights the first of the phases begins with instead. skip: steps
    to pass over (`skips`). overrides: `--set` assignments over the run file. A phase that `stop`
    ends early is the last. make: makes the trainer of a phase. Raises InputError where there is no
    build, or where a phase has neither a checkpoint of its own nor a predecessor that is trained.
    """
    named, build = build, run_folder.build_of(out, build)
    _check_purged(build)
    with joined() as world:
        if world.first and build != named:
            say(f"{out}: is over {build}, which {named} was before it was changed; goes on over it")
        work = world.agree(lambda: _phase_runs(build, run_file, phases, init_from, overrides))
        world.on_first(lambda: skips.ask(out, [manifest for _, manifest, _ in work], skip))
        for place, (run, manifest, before) in enumerate(work):
            first = init_from if place == 0 else None
            start = world.on_first(lambda: first or _start(out, manifest, before))  # noqa: B023
            trainer = make(run, manifest, build, out / manifest.phase, world)
            outcome = trainer.train(start, stop)
            if world.first:
                say(_line(manifest, outcome))
            if outcome.steps < manifest.steps:
                return


def _check_purged(build: Path) -> None:
    """Raise RefusalError where rows of a build hold less than its manifests say."""
    home = BuildFolder(redact.origin_of(build) if redact.is_redacted(build) else build)
    purged.check_finished(home)
    for manifest in read_manifests(build):
        if purged.since(BuildFolder(build), manifest):
            raise RefusalError(
                f"{build}: rows of phase {manifest.phase} were purged since it was sealed so; "
                f"redact {purged.log(home).parent} anew, or go on over it from before they were "
                "consumed: `crystalmix train BUILD --fork RUN --out OTHER`"
            )


def _phase_runs(
    build: Path,
    run_file: str,
    phases: Sequence[str],
    init_from: Path | None,
    overrides: Sequence[str],
) -> list[tuple[Run, Manifest, Manifest | None]]:
    """Return the phases to train, each with its run and the manifest of the one before."""
    manifests = [m for m in read_manifests(build) if not held_out.is_held_out(build, m)]
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    names = [manifest.phase for manifest in manifests]
    unknown = sorted(set(phases) - set(names))
    if unknown:
        raise UsageError(
            f"no phase is called {unknown[0]!r} in {build} (there are {', '.join(names)})"
        )
    if init_from is not None and not (init_from / run_folder.STATE).exists():
        raise InputError(f"{init_from}: is no checkpoint; give a folder such as {EXAMPLE}")
    path = find(run_file)
    # All of them before the first step, so that a fault in the last phase's settings shows now.
    data_sections.note(path, [m for m in manifests if not phases or m.phase in phases], overrides)
    work = [
        (load(path, manifest.phase, names, overrides), manifest, before)
        for before, manifest in zip([None, *manifests], manifests, strict=False)
        if not phases or manifest.phase in phases
    ]
    run, last, _ = work[-1]  # evaluation and metrics are the same for all phases
    evaluate.prepare(run.evaluation, manifests[: manifests.index(last) + 1], build)
    task_results.prepare([run for run, _, _ in work])
    metrics.check(run.metrics)
    return work


def _start(out: Path, manifest: Manifest, before: Manifest | None) -> Path | None:
    """Return the last weights of the phase before.

    None where there is no phase before, or where its weights are gone but no longer needed.
    """
    if before is None:
        return None
    last = PhaseFolder(out / before.phase).checkpoint(before.steps)
    if PhaseFolder(out / manifest.phase).newest and not (last / run_folder.STATE).exists():
        return None
    return _last_weights(out, before)


def _last_weights(out: Path, before: Manifest) -> Path:
    newest = PhaseFolder(out / before.phase).newest
    name = run_folder.checkpoint_name(before.steps)
    if newest is None or newest.name != name:
        raise InputError(
            f"{out}: phase {before.phase} is not trained to its end "
            f"(newest checkpoint: {newest.name if newest else 'none'}, needed: {name}); "
            "train it first"
        )
    state = run_folder.read_state(newest)
    if not run_folder.is_saved_under(PhaseFolder(out / before.phase), state, before.digest):
        raise StaleError(
            f"{newest}: was trained on manifest {str(state.manifest)[:12]}, this build's "
            f"{before.phase} is {before.digest[:12]}; give the build it was trained on, or train "
            "into another --out"
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
