"""`cm.train` and `cm.forecast`, weights in and out, and questions to a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.atomic_files import is_url
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Content
from crystalmix.train.api.checks import Place, existing
from crystalmix.train.api.opened import Build, Run
from crystalmix.train.trace import questions
from crystalmix.train.trace import sql as views
from crystalmix.train.trace.answers import Answer, Grid, Table
from crystalmix.train.trace.spikes import SpikeSettings

with imported_later(__name__):
    from crystalmix.train.api import copies

if TYPE_CHECKING:
    from crystalmix.train.trainer.forecast import PhaseForecast
    from crystalmix.train.weights.hf_export import Exported
    from crystalmix.train.weights.hub_push import Upload
    from crystalmix.train.weights.release import Released


@dataclass(frozen=True)
class Forecast(Answer):
    """What training takes, phase by phase: parameters, FLOPs, memory, disk, hours, refusals."""

    phases: tuple[PhaseForecast, ...]

    @property
    def faulty(self) -> bool:
        """Whether training would be refused."""
        return any(phase.refusals for phase in self.phases)

    def content(self) -> list[Content]:
        """Return the phases as JSON."""
        return [asdict(phase) for phase in self.phases]

    def shown(self) -> Iterator[str | Grid]:
        """Yield a table for each phase."""
        from crystalmix.train.trainer.forecast import lines

        yield from lines(self.phases)


def train(  # noqa: PLR0913  what the command has
    build: Place | Build,
    run: Place = "mini",
    *,
    out: Place,
    phases: Sequence[str] = (),
    stop: int | None = None,
    init_from: Place | None = None,
    skip: Sequence[str] = (),
    overrides: Sequence[str] = (),
    backend: str = "torch",
    say: Callable[[str], object] = lambda _: None,
) -> Run:
    """Train on a build's phases in order, each from the last weights of the one before.

    Goes on from the newest checkpoint in `out`. run: a run file or a preset. phases: only these.
    stop: end a phase after this many steps; it is the last then. init_from: begin the first phase
    with this checkpoint's weights. skip: [PHASE:]FIRST:LAST, steps to pass over. overrides:
    KEY=VALUE over the run file, as `runconfig.seed=2`. backend: torch, csx or cstorch-cpu. say:
    takes a line for each phase. out: for a url the run is made below `$CRYSTALMIX_CACHE`, of what
    the url holds where that is newer, and copied after each checkpoint and at its end. Raises
    InputError, RecipeError, StaleError (`out` holds another run), DivergenceError (a step gave no
    numbers).
    """
    from crystalmix.train.record.run_folder import build_of
    from crystalmix.train.trainer import session
    from crystalmix.train.trainer.trainer import Trainer

    place = build.path if isinstance(build, Build) else existing(build, by_ranges=True)
    more: dict[str, Callable[..., object]] = {}
    folder = Path(out)
    if is_url(out):
        folder = copies.begin_run(out)
        more["make"] = partial(Trainer, saved=partial(copies.send_on, folder, out))
    if backend != "torch":
        from crystalmix.train.cerebras.phase import maker

        more["make"] = maker(backend, str(run))
    session.train(
        place,
        str(run),
        folder,
        phases=phases,
        stop=stop,
        init_from=existing(init_from),
        skip=skip,
        overrides=overrides,
        say=say,
        **more,
    )
    if is_url(out):
        say("\n".join(copies.send(folder, out).lines()))
    return Run(folder, Build(build_of(folder, place)))


def adapt(  # noqa: PLR0913  what the command has
    build: Place | Build,
    policy: Place,
    run: Place = "mini",
    *,
    phase: str,
    out: Place,
    stop: int | None = None,
    init_from: Place | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> Run:
    """Train one phase in windows whose shares follow from the ledger so far.

    policy: a YAML file (`train.adaptive.policy.Policy`). Each window is sealed as a manifest in the
    run's own build before its first step. stop: end after this many steps of the phase. init_from:
    begin with this checkpoint's weights. Raises as `train`, and RefusalError for a phase or bounds
    that have no windows.
    """
    from crystalmix.train.adaptive.policy import read_policy
    from crystalmix.train.adaptive.run_windows import train_adaptive

    place = build.path if isinstance(build, Build) else existing(build, by_ranges=True)
    own = train_adaptive(
        place,
        str(run),
        Path(out),
        read_policy(existing(policy)),
        phase=phase,
        stop=stop,
        init_from=existing(init_from),
        overrides=overrides,
        say=say,
    )
    return Run(Path(out), Build(own))


def forecast(
    source: Place,
    run: Place = "mini",
    *,
    phases: Sequence[str] = (),
    ranks: int = 1,
    speed: float | None = None,
    overrides: Sequence[str] = (),
) -> Forecast:
    """Work out what training on a build or a recipe takes; nothing is trained.

    ranks: processes. speed: tokens a second of all of them, to give hours. overrides: KEY=VALUE
    over the run file.
    """
    from crystalmix.train.trainer import forecast as forecasts

    options = forecasts.Asked(ranks, speed)
    return Forecast(tuple(forecasts.forecast(Path(source), str(run), options, phases, overrides)))


def trace(  # noqa: PLR0913  what the command has
    run: Place,
    *,
    build: Place | None = None,
    step: str | None = None,
    slots: str | None = None,
    document: str | None = None,
    ratios: str | None = None,
    repeats: str | None = None,
    findings: bool = False,
    spikes: SpikeSettings | None = None,
) -> Answer:
    """Answer one question as `crystalmix trace` does; `cm.open(run)` has a method for each.

    step: PHASE:STEP. slots: FIRST:LAST of that step. document: a name. ratios: FIRST:LAST. repeats:
    a phase. Raises UsageError unless one question is asked.
    """
    return questions.trace(
        existing(run, by_ranges=True),
        existing(build, by_ranges=True),
        step=step,
        slots=slots,
        document=document,
        ratios=ratios,
        repeats_of=repeats,
        findings=findings,
        spike_settings=spikes,
    )


def drop_list(run: Place, spikes: Answer, out: Place, *, build: Place | None = None) -> int:
    """Write the digests of texts that are over-represented in spikes of a run; return how many.

    spikes: the answer of `cm.trace(run, spikes=...)`. Each phase is tested by itself (Fisher's
    exact test, false findings held to 5 %). `cm.audit`, `cm.redact`, `cm.build(..., without=)`
    and a recipe's `opt_out` take the list.
    """
    from crystalmix.train.trace import forensics
    from crystalmix.train.trace.spikes import Spikes

    assert isinstance(spikes, Spikes)
    traced = views.connect(existing(run, by_ranges=True), existing(build, by_ranges=True))
    by_phase: dict[str, list[int]] = {}
    for spike in spikes.steps:
        by_phase.setdefault(spike.phase, []).append(spike.step)
    keys = [
        key for phase, steps in by_phase.items() for key in forensics.suspects(traced, phase, steps)
    ]
    return forensics.drop_list(traced, sorted(set(keys)), Path(out))


def evaluate(  # noqa: PLR0913  what the command has
    run: Place,
    tasks: Sequence[Place] = (),
    *,
    phase: str | None = None,
    every: int | None = None,
    few_shot: int | None = None,
    limit: int | None = None,
    run_code: bool = False,
    plot: Place | None = None,
    build: Place | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Table:
    """Evaluate a run's kept checkpoints on task files of lm-evaluation-harness, in this process.

    tasks: YAML files over local data; without any, the results that the run has. phase: only this.
    every: only checkpoints of so many steps, and the newest. few_shot: examples before each
    question, in place of the files' own numbers. limit: the first so many questions of each task.
    run_code: allow tasks that run what the model writes (`problems` with unit tests).
    plot: draw all results over tokens, and what each phase changed, into this file. Columns: phase,
    step, task, metric, value, error, samples. What is evaluated already is not evaluated again.
    """
    import pyarrow as pa

    from crystalmix.train.evaluation import code_tasks
    from crystalmix.train.record.run_folder import build_of
    from crystalmix.train.trainer import task_results

    run = existing(run)
    place = build_of(run, existing(build))
    read = [code_tasks.read(existing(path), few_shot, limit, run_code=run_code) for path in tasks]
    results = task_results.evaluate_run(run, place, read, phase=phase, every=every, say=say)
    if plot is not None:
        from crystalmix.train.figures.results_plot import draw

        say(draw(run, place, Path(plot)))
    rows = [{"phase": name, **asdict(result)} for name, result in results]
    columns = ("phase", "step", "task", "metric", "value", "error", "samples")
    return Table(pa.table({name: [row[name] for row in rows] for name in columns}))


def sql(path: Place, query: str | None = None, *, build: Place | None = None) -> Table:
    """Run a SELECT over the views of a build, run or ablation; without one, list the views.

    Raises UsageError for a query that is wrong or that writes.
    """
    return views.query(views.connect(existing(path), existing(build)), query)


def export(
    source: Place,
    out: Place,
    *,
    phase: str | None = None,
    step: int | None = None,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    published: bool = False,
    build: Place | None = None,
) -> Exported:
    """Write a checkpoint (or a run's newest) in Hugging Face names as safetensors.

    phase, step: of a run, which checkpoint. dtype: float32 or bfloat16. shard_bytes: of the
    greatest file. published: with the copy of the head and the masks that the published files
    have. Raises InputError where `out` holds something.
    """
    from crystalmix.train.weights import hf_export

    place = existing(build)
    settings = hf_export.ExportSettings(dtype, shard_bytes, published)
    return hf_export.export(
        hf_export.find(existing(source), phase, step, place), Path(out), settings, place
    )


def import_weights(source: Place, out: Place, *, run: Place | None = None) -> str:
    """Write weights in Hugging Face names as a checkpoint to begin from; return their digest.

    run: the run file whose model they must fit; by default what `export` wrote down.
    """
    from crystalmix.train.weights import hf_import

    state = hf_import.import_weights(existing(source), Path(out), None if run is None else str(run))
    return str(state.weights)


def release(
    run: Place, out: Place, *, dtype: str = "float32", build: Place | None = None
) -> Released:
    """Write every kept checkpoint of a run as a revision, with ledger, manifests and checksums.

    dtype: of the weights. build: where the run's build is, if it was moved. `cm.verify(out)` holds
    the release to itself. Raises InputError where `out` holds something.
    """
    from crystalmix.train.record import run_folder
    from crystalmix.train.report import cards
    from crystalmix.train.weights import hf_export
    from crystalmix.train.weights import release as releasing

    place = run_folder.build_of(existing(run), existing(build))
    card = cards.card(place, "dataset-card").text
    return releasing.release(existing(run), Path(out), place, hf_export.ExportSettings(dtype), card)


def push(release: Place, repo: str, *, dry_run: bool = False) -> list[Upload]:
    """Send a release to a private repository of Hugging Face's hub; return what is sent.

    dry_run: say it alone. The client takes its token from where `hf auth login` put it.
    """
    from crystalmix.train.weights import hub_push
    from crystalmix.train.weights import release as releasing

    released = releasing.read(existing(release))
    return hub_push.uploads(released) if dry_run else hub_push.push(released, repo)
