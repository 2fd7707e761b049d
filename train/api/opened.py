"""`cm.open`: a build, a phase of it, a run, as objects to ask.

Tables are Arrow tables that show themselves in notebooks (`Table`); counts are rows or tokens,
losses nats per token, shares fractions of 1.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import crystalmix.train.trace as asked  # its modules are loaded when they are first used
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.opened import in_build
from crystalmix.mixtures.manifest.report import manifest_lines
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Content, frozen
from crystalmix.train.api.checks import Verdict, existing, verify
from crystalmix.train.trace.answers import Answer, Grid, Table

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa

    from crystalmix.mixtures.manifest import rows_of_steps
    from crystalmix.train.record import run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from crystalmix.train.api.ablations import Ablation
    from crystalmix.train.api.checks import Place
    from crystalmix.train.loader.batches import Batch, Share
    from crystalmix.train.loader.datasets import RowDataset, StepDataset
    from crystalmix.train.record.views import Traced
    from crystalmix.train.trace.findings import Findings
    from crystalmix.train.trace.forensics import StandingOut
    from crystalmix.train.trace.ratios import Ratios
    from crystalmix.train.trace.repeats import Repeats
    from crystalmix.train.trace.spikes import Spikes


def open(path: Place, *, build: Place | None = None) -> Build | Run | Ablation:  # noqa: A001
    """Open the folder of a build, a run or an ablation.

    build: where a run's build is, if it was moved. Raises InputError where there is none of them.
    """
    path = existing(path, by_ranges=True)
    if (path / run_folder.WHERE).exists():
        return Run(path, Build(run_folder.build_of(path, existing(build, by_ranges=True))))
    if not (path / "phases").exists():
        from crystalmix.train.api.ablations import Ablation, is_ablation

        if is_ablation(path):
            return Ablation(path)
    if not BuildFolder(path).manifests():
        asked.overview.look_at_build(path)
    return Build(path)


def show(
    path: Place, *, build: Place | None = None, step: str | None = None, history: bool = False
) -> Answer:
    """Look at a build, a manifest, a run or an ablation: what was asked, what came of it.

    step: PHASE:STEP for the rows that a step consumes, PHASE:FIRST:LAST for the parts of a range of
    steps; both from the manifest alone. history: the manifests that a build had before. Raises
    InputError where there is none of them.
    """
    if history:
        return asked.overview.look_at_history(existing(path, by_ranges=True))
    try:
        places = existing(path, by_ranges=True), existing(build, by_ranges=True)
        return asked.overview.look(*places, step)
    except InputError:
        from crystalmix.train.api.ablations import Ablation, is_ablation

        if step is not None or not is_ablation(existing(path, by_ranges=True)):
            raise
        return Ablation(existing(path, by_ranges=True))


@frozen
class Build(Answer):
    """A build: the folder that `build` or `import` wrote."""

    path: Path

    @cached_property
    def phases(self) -> dict[str, Phase]:
        """Its phases by name, in the order in which they follow each other."""
        return {m.phase: Phase(m, self.path) for m in in_build(self.path)}

    @property
    def overview(self) -> asked.overview.BuildOverview:
        """What was asked, what came of it, what was dropped."""
        return asked.overview.look_at_build(self.path)

    @property
    def history(self) -> asked.overview.History:
        """The manifests that it had before, and those that it has."""
        return asked.overview.look_at_history(self.path)

    def sql(self, query: str | None = None) -> Table:
        """Run a SELECT over its views; without one, list the views and their columns."""
        return asked.sql.query(self._views, query)

    def verify(self, *, workers: int = 1) -> Verdict:
        """Read everything again and list every disagreement."""
        verdict = verify(self.path, workers=workers)
        assert isinstance(verdict, Verdict)
        return verdict

    @property
    def domains(self) -> Table:
        """Documents, tokens and bytes of each domain that a phase draws from."""
        from crystalmix.train.trace import corpus

        return corpus.domains(self._views)

    @property
    def licences(self) -> Table:
        """The commonest licences of each source, where its recipe keeps such a column."""
        from crystalmix.train.trace import corpus

        return corpus.licences(self._views)

    def plot_mixtures(self, tokens: float | None = None) -> Figure:
        """Draw known mixtures over its domains, and the domain that each repeats most often.

        tokens: of the run to compare for; as many as there are by default.
        """
        from crystalmix.train.figures import charts
        from crystalmix.train.trace import corpus

        domains = self.domains
        counts = dict(zip(domains["domain"], domains["tokens"], strict=True))
        target = float(sum(counts.values())) if tokens is None else tokens
        mixtures = corpus.compared(counts, target)
        notes: dict[str, str] = {}
        for name, shares in mixtures.items():
            epochs = corpus.repeats(shares, counts, target)
            most = max(epochs, key=lambda domain: epochs[domain])
            notes[name] = f"{most} × {epochs[most]:.1f}"
        return charts.bars(mixtures, notes)

    def plot_flow(self) -> Figure:
        """Draw where tokens come from and where they go: source, domain, phase."""
        from crystalmix.train.figures import charts
        from crystalmix.train.trace import corpus

        return charts.flow(*corpus.links(self._views), ("source", "domain", "phase"))

    @cached_property
    def _views(self) -> Traced:
        return asked.sql.connect(self.path)

    def content(self) -> Content:
        """Return its overview as JSON."""
        return self.overview.content()

    def shown(self) -> Iterator[str | Grid]:
        """Yield its overview."""
        yield from self.overview.shown()


@frozen
class Phase(Answer):
    """A sealed phase of a build: its manifest, and what follows from it."""

    manifest: Manifest
    build: Path

    def rows(self, first: int, last: int | None = None) -> Table:
        """Predict what the steps first to last consume (one step by default).

        Columns: step, slot, part, epoch, shard (below the build), row. Raises UsageError for steps
        that the phase does not have.
        """
        manifest, last = self.manifest, self._last(first, last)
        paths = manifest.paths
        refs = manifest.rows(first * manifest.batch, (last + 1) * manifest.batch)
        places = np.arange(len(refs.row))
        names = np.array([part.name for part in manifest.parts])
        columns = {
            "step": pa.array(first + places // manifest.batch),
            "slot": pa.array(places % manifest.batch),
            "part": pa.array(names[refs.part]),
            "epoch": pa.array(refs.epoch),
            "shard": pa.array([paths[shard] for shard in refs.shard.tolist()], pa.string()),
            "row": pa.array(refs.row),
        }
        return Table(pa.Table.from_pydict(columns))

    def ratios(self, first: int = 0, last: int | None = None) -> Table:
        """Return what the steps first to last ask of each part and get (all steps by default).

        Columns: part, asked, got, rows, tokens, loss_tokens.
        """
        last = self.manifest.steps - 1 if last is None else last
        self._last(first, last)
        counts = [vars(count) for count in rows_of_steps.part_counts(self.manifest, first, last)]
        return Table(pa.Table.from_pylist(counts))

    def batches(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        micro: int | None = None,
    ) -> Iterator[Batch]:
        """Yield the rows of steps as numpy arrays, read ahead; no torch is needed.

        first, last: steps, to the end by default. rank, world: of the processes that share each
        batch. micro: rows at once, all of this process's of a step by default. Each `Batch` has
        step, ids, mask, labels, positions (rows, msl) int32, and where rows are from.
        """
        share = self._share(rank, world, micro)
        last = self.manifest.steps - 1 if last is None else last
        if first <= last:
            share.check(first)
            share.check(last)
        return share.ahead(range(first * share.per_step, (last + 1) * share.per_step))

    def dataset(
        self,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        micro: int | None = None,
        prefetch: int = 2,
    ) -> StepDataset:
        """Return a torch IterableDataset of steps: `DataLoader(dataset, batch_size=None)`.

        Any number of workers gives the same steps in the same order. start: the first step. micro:
        rows of a sample, all of this process's of a step by default. prefetch: samples that each
        process reads ahead. It has `state_dict` and `load_state_dict`.
        """
        from crystalmix.train.loader.datasets import StepDataset

        return StepDataset(self._share(rank, world, micro), start, prefetch)

    def row_dataset(self, *, start: int = 0, rank: int = 0, world: int = 1) -> RowDataset:
        """Return a torch map-style dataset of rows: p is slot p % batch of step p // batch.

        start: the step whose first row is row 0. With several processes, the rows of one of them.
        """
        from crystalmix.train.loader.datasets import RowDataset

        return RowDataset(self._share(rank, world), start)

    def _share(self, rank: int, world: int, micro: int | None = None) -> Share:
        from crystalmix.train.loader.batches import Share

        return Share(self.manifest, self.build, rank, world, micro)

    def _last(self, first: int, last: int | None) -> int:
        """Return the last step of a range; UsageError where the phase does not have all of it."""
        last, steps = first if last is None else last, self.manifest.steps
        if not 0 <= first <= last < steps:
            named = first if first == last else f"{first} to {last}"
            phase = self.manifest.phase
            raise UsageError(f"phase {phase} has the steps 0 to {steps - 1}, got {named}")
        return last

    def content(self) -> Content:
        """Return its manifest as JSON."""
        return self.manifest.content()

    def shown(self) -> Iterator[str | Grid]:
        """Yield its manifest as a table."""
        yield from manifest_lines(self.manifest)


@frozen
class Run(Answer):
    """A run: the folder that `train` wrote, and the build that it trained on."""

    path: Path
    build: Build

    @property
    def overview(self) -> asked.run_overview.RunOverview:
        """Steps and losses by phase, asked and got shares, evaluations, samples."""
        return asked.run_overview.look(self.path, self.build.path)

    def ledger(self, phase: str, kind: str = "rows") -> Table:
        """Return a phase's ledger: `rows` (what steps consumed) or `steps` (what came of them)."""
        from crystalmix.train.record import ledger

        return Table(ledger.read(run_folder.PhaseFolder(self.path / phase).ledger, kind))

    def sql(self, query: str | None = None) -> Table:
        """Run a SELECT over the views of run and build; without one, list them."""
        return asked.sql.query(self._views, query)

    def step(
        self, phase: str, step: int, slots: tuple[int, int] | None = None
    ) -> asked.questions.StepDocuments:
        """Return the documents of a step; slots: the first and the last of it, all by default.

        Raises UsageError for a step that the phase does not have, InputError for one not recorded.
        """
        return asked.questions.step_documents(self._views, phase, step, slots)

    def document(self, name: str) -> asked.questions.DocumentSteps:
        """Return the steps that consume a document; InputError where none has the name."""
        return asked.questions.document_steps(self._views, name)

    def ratios(self, first: int = 0, last: int | None = None) -> Ratios:
        """Return asked and got shares of each part over recorded steps (all by default)."""
        return asked.ratios.step_ratios(self._views, first, last)

    def repeats(self, phase: str) -> Repeats:
        """Return what a phase consumed that phases before it had consumed."""
        from crystalmix.train.trace.repeats import repeats

        return repeats(self._views, phase)

    def spikes(
        self, phase: str | None = None, *, window: int = 128, threshold: float = 6.0
    ) -> Spikes:
        """Return the steps whose loss or gradient norm stands out by a robust z.

        window: steps before a step that it is held to. threshold: the z that stands out.
        """
        from crystalmix.train.trace.spikes import SpikeSettings, spikes

        settings = SpikeSettings(phase=phase, window=window, threshold=threshold)
        return spikes(self._views, settings)

    def findings(self, *, batches: bool = False) -> Findings:
        """Return where ledger and plan disagree; batches: read the rows again too (slow)."""
        from crystalmix.train.trace.findings import compare

        return compare(self.build.path, self.path, batches=batches)

    def standing_out(self, phase: str) -> StandingOut:
        """Return the losses of a phase and the steps that stand out, one at least."""
        from crystalmix.train.trace import forensics

        return forensics.standing_out(self._views, phase)

    def over_represented(self, phase: str, steps: Sequence[int], share: float = 0.05) -> Table:
        """Return what is in some steps more often than chance has it (Fisher's exact test).

        Columns: property, value, inside, every, lift, p. share: of false findings among them.
        """
        from crystalmix.train.trace import forensics

        return forensics.over_represented(self._views, phase, steps, share)

    def pieces(self, phase: str, steps: Sequence[int], most: int = 12) -> Table:
        """Return the longest document pieces of some steps, with the beginnings of their texts."""
        from crystalmix.train.trace import forensics

        return forensics.pieces(self._views, phase, steps, most)

    def replay(self, phase: str, steps: Sequence[int]) -> Table:
        """Read the rows of steps again: step, rows, same (bit for bit those trained on)."""
        from crystalmix.train.trace import forensics

        return forensics.replayed(self._views, phase, steps)

    def drop_list(
        self,
        out: Place,
        documents: Sequence[str] = (),
        *,
        phase: str = "",
        steps: Sequence[int] = (),
    ) -> int:
        """Write the digests of documents' texts, one a line; return how many.

        `cm.build(..., without=)`, `cm.audit`, `cm.redact` and a recipe's `opt_out` take the list.
        documents: keys `source:document`, or else the three with most tokens in steps of a phase.
        """
        from crystalmix.train.trace import forensics

        keys = documents or forensics.documents_of(self._views, phase, steps)[:3]
        return forensics.drop_list(self._views, keys, Path(out))

    def suspects(self, phase: str, steps: Sequence[int], share: float = 0.05) -> list[str]:
        """Return documents (keys `source:document`) that are over-represented in some steps."""
        from crystalmix.train.trace import forensics

        return forensics.suspects(self._views, phase, steps, share)

    def plot(self, file: Place) -> str:
        """Draw losses and shares of parts into a file; return what was drawn, in words."""
        from crystalmix.train.figures.run_plot import draw

        return draw(self.path, self.build.path, Path(file))

    def plot_losses(self, phase: str) -> Figure:
        """Draw the losses of a phase, and the steps that stand out."""
        from crystalmix.train.figures import charts

        outliers = self.standing_out(phase)
        return charts.trace(outliers.steps, outliers.losses, outliers.spikes)

    @cached_property
    def _views(self) -> Traced:
        return asked.sql.connect(self.path, self.build.path)

    def content(self) -> Content:
        """Return its overview as JSON."""
        return self.overview.content()

    def shown(self) -> Iterator[str | Grid]:
        """Yield its overview."""
        yield from self.overview.shown()
