"""Forecast of a training: steps, memory, disk, hours and refusals, before a step is made.

Everything follows from the run file and the manifests, or from a recipe's plan where nothing is
built; no weights are made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crystalmix.mixtures.manifest.manifest import Manifest, TokenizerIdentity, read_manifests
from crystalmix.mixtures.plan.plan import PhasePlan, plan
from crystalmix.mixtures.recipes.recipe import load as load_recipe
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, UsageError
from crystalmix.prep.runtime.tables import format_hours, table
from crystalmix.train.evaluation.held_out import is_held_out
from crystalmix.train.model.crystal import flops_per_row, parameters_count
from crystalmix.train.model.optimizer import Linear, schedule
from crystalmix.train.model.processes import alone, fast_dtype
from crystalmix.train.runfile import data_sections
from crystalmix.train.runfile.run_file import find, load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.claim import check_fit
from crystalmix.train.trainer.footprint import Memory, Pass, checkpoint_bytes, memory

GIGA = 1e9


@dataclass(frozen=True)
class Asked:
    """What a forecast is for: processes, and tokens a second of all of them together, if known."""

    processes: int = 1
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(f"--ranks: must be at least 1, got {self.processes}")
        if self.speed is not None and not self.speed > 0:
            raise UsageError(f"--speed: must be positive, got {self.speed:g}")


@dataclass(frozen=True)
class PhaseForecast:
    """What one phase takes. disk: of its checkpoints, while one more is written.

    rows_per_pass: of a process. memory: of a process, by how several share the model.
    """

    phase: str
    steps: int
    batch: int
    msl: int
    tokens: int
    parameters: int
    flops_per_token: float
    flops: float
    processes: int
    rows_per_pass: int
    memory: dict[str, Memory]
    checkpoint_bytes: int
    checkpoints: int
    disk: int
    hours: float | None
    refusals: tuple[str, ...]
    notes: tuple[str, ...]


def forecast(
    source: Path,
    run_file: str,
    options: Asked,
    phases: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[PhaseForecast]:
    """Forecast each phase of a build, or of a recipe by path or bundled name.

    Raises as training would where the run file can't be read or a phase is not there.
    """
    manifests, refused = _phases(source)
    names = [manifest.phase for manifest in manifests]
    if unknown := sorted(set(phases) - set(names)):
        raise UsageError(
            f"no phase is called {unknown[0]!r} in {source} (there are {', '.join(names)})"
        )
    path = find(run_file)
    return [
        _phase(path, load(path, manifest.phase, names, overrides), manifest, options, refused)
        for manifest in manifests
        if not phases or manifest.phase in phases
    ]


def lines(forecasts: Sequence[PhaseForecast]) -> list[str]:
    """Return a forecast as tables."""
    shown: list[str] = []
    for phase in forecasts:
        hours = "" if phase.hours is None else f", {format_hours(phase.hours)} hours"
        shown += [
            f"{phase.phase}: {phase.steps:,} steps x {phase.batch:,} rows x {phase.msl:,} tokens = "
            f"{phase.tokens:,} tokens{hours}",
            f"  {phase.parameters:,} parameters, {phase.flops_per_token / GIGA:,.4g} GFLOP a token"
            f", {phase.flops:.3g} FLOP in all",
            f"  checkpoints of {_size(phase.checkpoint_bytes)}, {phase.checkpoints} kept: "
            f"{_size(phase.disk)} of disk while one more is written",
        ]
        head = [f"  memory at {phase.rows_per_pass} rows a pass"]
        parts = list(Memory.__dataclass_fields__)
        each = f", each of {phase.processes}" if phase.processes > 1 else ""
        rows = [
            [
                f"  {how}{each}",
                *(_size(getattr(memory, part)) for part in [*parts, "total"]),
            ]
            for how, memory in phase.memory.items()
        ]
        shown += table(rows, [*head, *parts, "total"])
        shown += [f"  note: {line}" for line in phase.notes]
        shown += [f"  refused: {line}" for line in phase.refusals]
        shown.append("")
    disk = sum(phase.disk for phase in forecasts)
    total = f"all phases: {sum(phase.tokens for phase in forecasts):,} tokens, {_size(disk)}"
    hours = [phase.hours for phase in forecasts if phase.hours is not None]
    return [
        *shown,
        f"{total} of checkpoints" + (f", {format_hours(sum(hours))} hours" if hours else ""),
    ]


def _phase(
    path: Path, run: Run, manifest: Manifest, options: Asked, refused: dict[str, tuple[str, ...]]
) -> PhaseForecast:
    refusals = list(refused.get(manifest.phase, ()))
    try:
        check_fit(run, manifest, options.processes)
    except CrystalmixError as error:
        refusals.append(str(error))
    model, settings = run.model, run.settings
    share = max(1, manifest.batch // options.processes)
    chosen = settings.dtype == "auto"
    dtype = fast_dtype(alone().device) if chosen else settings.dtype
    pass_ = Pass(settings.micro_batch or share, manifest.msl, dtype, settings.recompute)
    ways = {"ddp": False, "fsdp": True} if options.processes > 1 else {"one process": False}
    size, checkpoints = checkpoint_bytes(model), _checkpoint_count(run, manifest.steps)
    tokens = manifest.steps * manifest.batch * manifest.msl
    flops = flops_per_row(model, manifest.msl)
    return PhaseForecast(
        phase=manifest.phase,
        steps=manifest.steps,
        batch=manifest.batch,
        msl=manifest.msl,
        tokens=tokens,
        parameters=parameters_count(model),
        flops_per_token=flops / manifest.msl,
        flops=float(flops) * manifest.steps * manifest.batch,
        processes=options.processes,
        rows_per_pass=pass_.rows,
        memory={how: memory(model, pass_, options.processes, sharded=s) for how, s in ways.items()},
        checkpoint_bytes=size,
        checkpoints=checkpoints,
        disk=size * (checkpoints + 1),
        hours=None if options.speed is None else tokens / options.speed / 3600,
        refusals=tuple(refusals),
        notes=(
            *_notes(path, run, manifest),
            *([f"runconfig.dtype: auto is {dtype} on this machine"] if chosen else ()),
        ),
    )


def _phases(source: Path) -> tuple[list[Manifest], dict[str, tuple[str, ...]]]:
    """Return the phases of a build, or those that a recipe plans and why they are refused."""
    if source.is_dir():
        manifests = read_manifests(source)
        if not manifests:
            raise InputError(
                f"{source}: holds no sealed phase; give the --out of `crystalmix build`"
            )
        return [phase for phase in manifests if not is_held_out(source, phase)], {}
    recipe = load_recipe(str(source))
    held_out = {
        name
        for name, phase in recipe.phases.items()
        if all(recipe.domains[part.domain].validates for part in phase.parts)
    }
    planned = [phase for phase in plan(recipe) if phase.name not in held_out]
    return [_manifest_of(p) for p in planned], {p.name: p.refusals for p in planned}


def _manifest_of(phase: PhasePlan) -> Manifest:
    """Return the manifest of a phase as far as a plan knows it: no parts, no tokenizer."""
    return Manifest(
        name="",
        phase=phase.name,
        steps=phase.steps,
        batch=phase.batch,
        msl=phase.msl,
        seed=0,
        order_version=phase.order,
        cerebras=None,
        tokenizer=TokenizerIdentity(0),
        parts=(),
        previous=None,
        imported=None,
    )


def _checkpoint_count(run: Run, steps: int) -> int:
    """Return how many checkpoints of a phase stay: the newest, and those at multiples."""
    every, settings = run.settings.checkpoint_steps, run.settings
    checkpoints = {*range(every, steps + 1, every), steps}
    last = set(sorted(checkpoints)[-settings.keep_checkpoints :])
    every = settings.keep_every
    return len(last | {step for step in checkpoints if every and step % every == 0})


def _notes(path: Path, run: Run, manifest: Manifest) -> Iterator[str]:
    """Yield what a user should know, though nothing is refused."""
    if manifest.parts:
        yield from data_sections.contradictions(path, manifest)
    elif not manifest.tokenizer.vocab:
        yield "nothing is built: whether the vocabulary fits is not known"
    yield from _schedule_notes(run.optimizer.learning_rate, manifest.steps)


def _schedule_notes(pieces: Sequence[Linear], steps: int) -> Iterator[str]:
    planned = sum(piece.steps for piece in pieces)
    if planned < steps:
        yield (
            f"the schedule has {planned:,} of {steps:,} steps: the last {steps - planned:,} are "
            f"made at {pieces[-1].end:g}"
        )
    elif planned > steps > 0:
        yield (
            f"the schedule has {planned:,} steps, the phase ends after {steps:,}: its last "
            f"learning rate is {schedule(pieces, steps - 1):g}"
        )


def _size(count: int) -> str:
    """Return bytes as people read them.

    >>> _size(2_366_723_000_000), _size(26_301_114_880), _size(1_234_000), _size(0)
    ('2,366.72 GB', '26.30 GB', '1.23 MB', '0 MB')
    """
    if count >= GIGA:
        return f"{count / GIGA:,.2f} GB"
    return f"{count / 1e6:.2f} MB" if count else "0 MB"
