"""Reuse: what a build of a recipe into a folder would take, make and write, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.build.build import opened_tokenizer
from crystalmix.mixtures.build.context import Context
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.plan.measured import Measured
from crystalmix.mixtures.plan.prospects import prospects
from crystalmix.mixtures.plan.steps import Stage, State, Step, Walk
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.runtime.tables import format_hours, table
from crystalmix.prep.runtime.types import Content
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.store import rates
from crystalmix.prep.store.rates import Rate
from crystalmix.prep.store.store import Store

STATES: dict[State, str] = {
    "reused": "reused",
    "made": "made",
    "depends": "made, unless its inputs stay",
    "refused": "refused",
}
TIMED: dict[Stage, str] = {"tokens": "tokenise", "pack": "pack", "fim": "fim", "shuffle": "shuffle"}


@dataclass(frozen=True)
class Reads:
    """Raw files to be read: for digests that nobody remembers, for documents, for tokens.

    files: for digests; others are bytes.
    """

    files: int
    digests: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Disk:
    """Bytes of a build and its store, token ids apart: now, and after the build."""

    now: int
    ids: int
    then: int | None
    then_ids: int | None


@dataclass(frozen=True)
class Reuse:
    """What a build would do.

    hours: of one process, None where no build into the store was timed that did the same.
    """

    steps: tuple[Step, ...]
    reads: Reads
    disk: Disk
    hours: float | None

    def content(self) -> Content:
        """Return it as JSON."""
        return asdict(self)

    @property
    def rows(self) -> int | None:
        """Rows to be written, at most."""
        return _sum([step.rows for step in self.steps])

    @property
    def bytes(self) -> int | None:
        """Bytes to be written, at most, token ids left out."""
        return _sum([step.bytes for step in self.steps if step.stage != "tokens"])

    @property
    def ids(self) -> int | None:
        """Bytes of token ids to be written, at most."""
        return _sum([step.bytes for step in self.steps if step.stage == "tokens"])

    def lines(self) -> list[str]:
        """Return it as a table, and what it comes to."""
        new = [step for step in self.steps if step.state != "reused"]
        kept = len(self.steps) - len(new)
        if not new:
            return [f"a build would find all {kept} folders and phases, and write nothing"]
        rows = [
            [
                step.place if step.stage != "tokens" else f"tokens of {step.place}",
                STATES[step.state],
                *(f"{n:,}" if step.reused + step.made else "" for n in (step.reused, step.made)),
                _count(step.rows) if step.stage in ("pack", "fim", "shuffle") else "",
                _count(step.bytes),
            ]
            for step in new
        ]
        head = ["a build would make", "state", "files reused", "made", "rows", "bytes"]
        reads, disk = self.reads, self.disk
        return [
            *table(rows, head),
            f"all else is reused: {kept} of {len(self.steps)} folders and phases",
            f"raw bytes to read: {reads.digests:,} for digests of {reads.files} files, "
            f"{reads.documents:,} for documents, {reads.tokens:,} for tokens",
            f"to write, at most: about {_count(self.rows)} rows, {_count(self.bytes)} bytes, "
            f"and {_count(self.ids)} of token ids",
            f"disk: {disk.now:,} bytes and {disk.ids:,} of token ids now, {_count(disk.then)} and "
            f"{_count(disk.then_ids)} at the end, which is the peak",
            "hours of one process: unknown, for no build here was timed that did the same"
            if self.hours is None
            else f"hours of one process, as builds here took: {format_hours(self.hours)}",
        ]


def reuse(recipe: Recipe, root: Path, out: Path, tokens: Mapping[str, int]) -> Reuse:
    """Work out what a build of a recipe's phases into `out` would do; root: the raw files.

    tokens: of domains, as estimated or declared, for those that nothing in the build tells of.
    Raises what a build raises before it reads: InputError for missing raw files, RecipeError.
    """
    context = Context(recipe, root, out, Fanout(1), opened_tokenizer(recipe), dry=True)
    sources, domains = prospects(context), context.domains
    measured = Measured.of(context.folder, sources.values())
    for name in (name for name in domains if name in tokens):
        raw = {s: sum(b.bytes for b in sources[s].blocks) for s in recipe.domains[name].sources}
        measured.estimate(name, raw, tokens[name] // recipe.domains[name].epochs)
    walk = Walk(context, measured, sources)
    for name in sources:
        walk.source(name)
    last = {name: walk.domain(name) for name in domains}
    before: dict[str, Manifest] = {}
    for name in recipe.phases:
        walk.phase(name, last, before)
    walk.history()
    unread = {place: size for p in sources.values() for place, size in p.unread.items()}
    reads = Reads(
        files=len(unread),
        digests=sum(unread.values()),
        documents=sum(walk.scanned.values()),
        tokens=sum(walk.read.values()),
    )
    steps = tuple(walk.steps)
    return Reuse(steps, reads, _disk(out, context.store, steps), _hours(context, steps, reads))


def _sum(amounts: Sequence[int | None]) -> int | None:
    return None if None in amounts else sum(amount or 0 for amount in amounts)


def _count(amount: int | None) -> str:
    return "?" if amount is None else f"{amount:,}"


def _disk(out: Path, store: Store, steps: tuple[Step, ...]) -> Disk:
    """Return what a build and its store take, and will."""
    ids = _size(store.path / "tokens")
    now = _size(out) - ids
    if store.path.is_symlink():
        now = _size(out) + _size(store.path.resolve()) - ids
    more = _sum([step.bytes for step in steps if step.stage != "tokens"])
    more_ids = _sum([step.bytes for step in steps if step.stage == "tokens"])
    then = None if more is None else now + more
    return Disk(now, ids, then, None if more_ids is None else ids + more_ids)


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _hours(context: Context, steps: tuple[Step, ...], reads: Reads) -> float | None:
    speeds = rates.read(context.store)
    amounts: dict[str, int | None] = {"raw files": reads.digests, "documents": reads.documents}
    for step in steps:
        if (stage := TIMED.get(step.stage)) is not None:
            amounts[stage] = _sum([amounts.get(stage, 0), step.tokens])
    seconds = [_seconds(speeds.get(stage), amount) for stage, amount in amounts.items()]
    return None if None in seconds else sum(second or 0.0 for second in seconds) / 3600


def _seconds(rate: Rate | None, amount: int | None) -> float | None:
    if amount == 0:
        return 0.0
    if rate is None or amount is None:
        return None
    return amount * rate.seconds / rate.amount
