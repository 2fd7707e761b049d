"""Overviews of `crystalmix show`: a manifest or a build, and what the build was before."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.manifest import purged, report, rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.verify import account_report
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record.run_folder import WHERE, build_of
from crystalmix.train.trace.answers import Answer, Grid, Lines


@dataclass(frozen=True)
class BuildOverview(Answer):
    """A build, or manifests alone: asked and got shares, rows, and dropped documents.

    accounts: of each folder of documents and rows, as its receipt has it; none without a build.
    """

    path: Path
    manifests: tuple[Manifest, ...]
    accounts: tuple[Content, ...]

    def content(self) -> Content:
        """Manifests and accounts as JSON."""
        content: Content = {
            "manifests": [{**m.content(), "digest": m.digest} for m in self.manifests]
        }
        if not self.accounts:
            return content
        return {**content, "reads": asdict(self.reads), "accounts": list(self.accounts)}

    @property
    def reads(self) -> Reads:
        """What its phases read of each domain, together and again."""
        return Reads.of(of_manifests(self.manifests))

    def shown(self) -> Iterator[str | Grid]:
        """Yield a purge that is not finished, a table for each manifest, then the accounts."""
        if self.accounts and (line := purged.unfinished_line(BuildFolder(self.path))):
            yield line
            yield ""
        for manifest in self.manifests:
            yield from report.manifest_lines(manifest)
            yield ""
        if self.accounts:
            yield from self.reads.lines()
            yield ""
        if self.accounts:
            yield from account_report.account_lines(self.path)


@dataclass(frozen=True)
class SealedPhase:
    """A phase as a state of a build sealed it: steps, and the digest of its manifest."""

    phase: str
    steps: int
    digest: str


@dataclass(frozen=True)
class State:
    """What a build was: its folder below the build (empty for the present), and its phases."""

    folder: str
    phases: tuple[SealedPhase, ...]


@dataclass(frozen=True)
class History(Answer):
    """What a build was before, oldest first, and what it is."""

    states: tuple[State, ...]

    def shown(self) -> Iterator[str | Grid]:
        """Yield a line for each manifest of each state."""
        cells = [
            [state.folder or "now", phase.phase, f"{phase.steps:,}", phase.digest[:12]]
            for state in self.states
            for phase in state.phases
        ]
        yield Grid(cells, ["state", "phase", "steps", "manifest"])


def look_at_history(path: Path) -> History:
    """Return what a build was before; InputError if it is no build."""
    folder = BuildFolder(path)
    if not folder.manifests():
        raise InputError(f"{path}: is no build; give the --out of `crystalmix build`")
    now = State("", _phases(folder))
    states = [State(p.path.relative_to(path).as_posix(), _phases(p)) for p in folder.states()]
    return History((*(state for state in states if state.phases != now.phases), now))


def _phases(folder: BuildFolder) -> tuple[SealedPhase, ...]:
    manifests = read_manifests(folder.path)
    return tuple(SealedPhase(m.phase, m.steps, m.digest) for m in manifests)


def look(path: Path, build: Path | None = None, step: str | None = None) -> Answer:
    """Return the overview of a path; InputError if it is no build, manifest or run.

    build: where a run's build is, if it was moved. step: what `rows_of_steps.look` takes.
    """
    is_run = (path / WHERE).exists()
    if step is not None:
        content, lines = rows_of_steps.look(build_of(path, build) if is_run else path, step)
        return Lines(tuple(lines), [asdict(entry) for entry in content])
    if not is_run:
        return look_at_build(path)
    from crystalmix.train.trace import run_overview  # brings what answers of the ledger need

    return run_overview.look(path, build_of(path, build))


def look_at_build(path: Path) -> BuildOverview:
    """Return the overview of a build or of manifests."""
    manifests = read_manifests(path) if path.exists() else []
    folders = BuildFolder(path).sealed()
    if not manifests and not folders:
        raise InputError(f"{path}: is no build, manifest or run; give the --out of build or train")
    accounts: list[Content] = [
        {"folder": f.relative_to(path).as_posix(), **receipts.read(f).account} for f in folders
    ]
    return BuildOverview(path, tuple(manifests), tuple(accounts))
