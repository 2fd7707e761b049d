"""Evidence of a page: what commands print as JSON of a build, a run or an ablation, gathered once.

What a page reads is bounded: manifests, receipts, the ledger's tables, rows and spans of a sample.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path

import numpy as np

from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.manifest.rows_of_steps import part_counts
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.evaluation.held_out import is_held_out
from crystalmix.train.pages.sampled_rows import SampledRow, sample
from crystalmix.train.record import metrics, views
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.record.views import Traced
from crystalmix.train.report import facts
from crystalmix.train.report.card_file import CardFile
from crystalmix.train.trace import forensics, overview, questions, run_overview
from crystalmix.train.trace.answers import Verdict
from crystalmix.train.trace.repeats import repeats
from crystalmix.train.trace.spikes import SpikeSettings, spikes

INTERVALS = 8  # of the steps of a phase
POINTS = 300  # of a curve
MOST_ROWS = 20_000_000  # of a ledger in which repeats are looked for
MOST_SPIKES = 20  # of a page, those with the greatest z
MOST_PIECES = 10
LOSSES = """
    SELECT phase, NULL AS part, min(step) AS step, avg(loss) AS loss
    FROM steps WHERE NOT skipped AND loss IS NOT NULL GROUP BY phase, step // {width}
    UNION ALL
    SELECT phase, part, min(step) AS step, sum(loss * tokens) / sum(tokens) AS loss
    FROM losses WHERE tokens > 0 AND loss IS NOT NULL GROUP BY phase, part, step // {width}
    ORDER BY part NULLS FIRST, phase, step
"""


@dataclass(frozen=True)
class Interval:
    """What some steps of a phase ask and get: `crystalmix show BUILD --step PHASE:FIRST:LAST`."""

    phase: str
    first: int
    last: int
    parts: list[Json]


@dataclass(frozen=True)
class LossPoint:
    """The mean loss of `width` steps from `step` on; part: None for all rows of the steps."""

    phase: str
    part: str | None
    step: int
    loss: float | None


@dataclass(frozen=True)
class Pieces:
    """The longest document pieces of the step with the highest loss of a phase's later ones."""

    phase: str
    step: int
    loss: float | None
    pieces: list[Json]


@dataclass(frozen=True)
class Sealed:
    """What a phase is known by: digests, of a run also the chain's head and the last weights.

    loss_unit: of the loss of all rows of a step. held_out: whether it is there to be evaluated, and
    not trained on; None where that is not known.
    """

    phase: str
    manifest: str
    recorded: int | None
    skipped: int
    chain: str | None
    weights: str | None
    loss_unit: str | None
    held_out: bool | None


@dataclass(frozen=True)
class Losses:
    """Losses of a run. width: steps of a point. left_out: spikes beyond MOST_SPIKES."""

    width: int
    points: list[LossPoint]
    spikes: list[Content]
    left_out: int
    highest: list[Pieces]


@dataclass(frozen=True)
class Evidence:
    """All that a page says, as `crystalmix report --json` prints it.

    folder, build_folder: names of the folders. build, run: what `show --json` prints of them.
    repeats: what `trace --repeats` prints, by phase; None where the ledger is too long. ablation:
    the report of one. verified: what `verify` found, None where it was not run.
    """

    kind: str
    name: str
    folder: str
    build_folder: str = ""
    build: Content = field(default_factory=dict[str, object])
    run: Content | None = None
    intervals: list[Interval] = field(default_factory=list[Interval])
    rows: list[SampledRow] = field(default_factory=list[SampledRow])
    losses: Losses | None = None
    repeats: dict[str, list[dict[str, object]]] | None = None
    tasks: list[Json] = field(default_factory=list[Json])
    sealed: list[Sealed] = field(default_factory=list[Sealed])
    ablation: Content | None = None
    verified: Verdict | None = None


def of_build(run: Path | None, build: Path, verified: Verdict | None) -> Evidence:
    """Gather the evidence of a build, or of a run and its build; errors as of `facts.gather`."""
    facts_ = facts.gather(run, build, CardFile())
    manifests = read_manifests(build)
    traced = None if run is None else views.connect(build, run)
    return Evidence(
        "build" if run is None else "run",
        facts_.name,
        (run or build).resolve().name,
        build.resolve().name,
        overview.look_at_build(build).content(),
        None if run is None else run_overview.look(run, build).content(),
        [interval for manifest in manifests for interval in _intervals(manifest)],
        sample(manifests, build),
        None if traced is None else _losses(traced, [manifest.phase for manifest in manifests]),
        None if traced is None else _repeats(traced, manifests),
        [] if run is None else _tasks(run, manifests),
        [_sealed(phase, build) for phase in facts_.phases],
        None,
        verified,
    )


def of_ablation(folder: Path) -> Evidence:
    """Gather the evidence of an ablation; InputError where it has not come to its end."""
    from crystalmix.train.ablations.report import read_report

    report = read_report(folder)
    return Evidence("ablation", report.name, folder.resolve().name, ablation=report.content())


def _intervals(manifest: Manifest) -> list[Interval]:
    """Return what equal intervals of a phase's steps ask and get, by its manifest."""
    edges = np.linspace(0, manifest.steps, min(INTERVALS, manifest.steps) + 1).astype(int).tolist()
    return [
        Interval(
            manifest.phase,
            first,
            stop - 1,
            [asdict(count) for count in part_counts(manifest, first, stop - 1)],
        )
        for first, stop in pairwise(edges)
    ]


def _losses(traced: Traced, order: Sequence[str]) -> Losses | None:
    """Return the losses of a run; None where none was recorded."""
    query = "SELECT phase, max(step) + 1 AS steps FROM steps WHERE loss IS NOT NULL GROUP BY phase"
    counts: dict[str, int] = {row["phase"]: row["steps"] for row in traced.rows(query)}
    steps = {phase: counts[phase] for phase in order if phase in counts}
    if not steps:
        return None
    width = max(1, sum(steps.values()) // POINTS)
    outliers = spikes(traced, SpikeSettings())
    greatest = sorted(outliers.steps, key=lambda s: -max(s.loss_z or 0.0, s.gradient_norm_z or 0.0))
    places = {(s.phase, s.step) for s in greatest[:MOST_SPIKES]}
    spiked = {phase for phase, _ in places}
    return Losses(
        width,
        traced.records(LossPoint, LOSSES.format(width=width)),
        [spike for spike in outliers.content() if (spike["phase"], spike["step"]) in places],
        len(outliers.steps) - len(places),
        [_highest(traced, phase) for phase in steps if phase not in spiked],
    )


def _highest(traced: Traced, phase: str) -> Pieces:
    """Return the step of a phase that stands out most where none is a spike, and its documents."""
    outliers = forensics.standing_out(traced, phase)
    step = outliers.spikes[0]
    loss = float(outliers.losses[np.flatnonzero(outliers.steps == step)[0]])
    answer = questions.step_documents(traced, phase, step)
    pieces = sorted(
        answer.content(), key=lambda p: (p.get("start", 0) - p.get("stop", 0), p["slot"])
    )
    return Pieces(phase, step, loss if isfinite(loss) else None, pieces[:MOST_PIECES])


def _repeats(
    traced: Traced, manifests: Sequence[Manifest]
) -> dict[str, list[dict[str, object]]] | None:
    recorded = {row["phase"] for row in traced.rows("SELECT DISTINCT phase FROM steps")}
    [count] = traced.rows('SELECT count(*) AS "rows" FROM "rows"')
    if count["rows"] > MOST_ROWS:
        return None
    phases = [manifest.phase for manifest in manifests if manifest.phase in recorded]
    return {phase: repeats(traced, phase).content() for phase in phases[1:]}


def _tasks(run: Path, manifests: Sequence[Manifest]) -> list[Json]:
    folders = [PhaseFolder(run / manifest.phase) for manifest in manifests]
    return [
        {"phase": folder.name, **asdict(result)}
        for folder in folders
        for result in metrics.tasks(folder)
    ]


def _sealed(phase: facts.PhaseFacts, build: Path) -> Sealed:
    try:
        held_out = is_held_out(build, phase.manifest)
    except RefusalError:
        held_out = None
    return Sealed(
        phase.name,
        phase.manifest.digest,
        phase.steps,
        phase.skipped,
        phase.chain,
        None if phase.checkpoint is None else phase.checkpoint.weights,
        None if phase.claim is None else phase.claim.loss_unit,
        held_out,
    )
