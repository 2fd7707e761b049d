"""Outlook: what a recipe's phases take, the disk its shards need, and the hours of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crystalmix.mixtures.build import shared_texts, shuffle
from crystalmix.mixtures.build.pack import is_laid_out
from crystalmix.mixtures.build.shared_texts import Findings
from crystalmix.mixtures.manifest.build_folder import DOMAINS, BuildFolder, rows_files
from crystalmix.mixtures.manifest.coverage import Reads
from crystalmix.mixtures.plan.copies import CopiesPlan, copies
from crystalmix.mixtures.plan.measured import bytes_a_token
from crystalmix.mixtures.plan.plan import PhasePlan, draws, plan
from crystalmix.mixtures.plan.reuse import Reuse, reuse
from crystalmix.mixtures.recipes.recipe import Recipe, find, load
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import CrystalmixError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.tables import format_hours, table
from crystalmix.prep.runtime.types import Content

with imported_later(__name__):
    from crystalmix.mixtures.plan import sample_sources

TEXT_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Passing:
    """Bytes beside the shards while a domain is shuffled in two passes, of the largest such one."""

    domain: str
    bytes: int


@dataclass(frozen=True)
class Outlook:
    """A plan of all phases; disk: bytes of all shards, None where a domain's size is unknown.

    hours: of training, phase by phase, at the tokens a second of `--speed`. shared: texts that
    domains have in common, where they are scanned. reads: what all phases read of each domain.
    reuse: what a build into the folder would take and make, None without one; unknown: why that is
    not known. copies: of the documents of domains that upsample. passing: where a shuffle takes two
    passes.
    """

    phases: tuple[PhasePlan, ...]
    disk: int | None
    hours: tuple[float, ...]
    shared: Findings = field(default_factory=Findings)
    reads: Reads = field(default_factory=Reads)
    reuse: Reuse | None = None
    unknown: str = ""
    copies: tuple[CopiesPlan, ...] = ()
    passing: Passing | None = None

    @property
    def faulty(self) -> bool:
        """Whether the recipe can't be built like this."""
        return bool(self.shared.refusals) or any(phase.refusals for phase in self.phases)

    def content(self) -> Content:
        """Return it as JSON; `copies` and `passing` only where there are some."""
        content = asdict(self)
        for name in ("copies", "passing"):
            if not content[name]:
                del content[name]
        return content

    def lines(self) -> list[str]:
        """Return it as tables."""
        size = "unknown" if self.disk is None else f"about {_size(self.disk)}"
        lines = [*plan_lines(self.phases), ""]
        if reads := self.reads.lines():
            lines += [*reads, ""]
        for domain in self.copies:
            lines += [*domain.lines(), ""]
        lines += [f"shards on disk: {size}"]
        if (extra := self.passing) is not None:
            lines[-1] += f"; {_size(extra.bytes)} more while {extra.domain} is shuffled"
            lines[-1] += f" (in two passes, above {shuffle.TWO_PASS_SHARDS} shards)"
        if self.reuse is not None:
            lines += ["", *self.reuse.lines(), ""]
        lines += [f"note: what a build would reuse is not known: {self.unknown}"] * bool(
            self.unknown
        )
        lines += [f"refused: {line}" for line in self.shared.refusals]
        lines += [f"note: {line}" for line in self.shared.notes]
        if self.hours:
            phases = ", ".join(
                f"{phase.name} {format_hours(hours)}"
                for phase, hours in zip(self.phases, self.hours, strict=True)
            )
            lines.append(f"hours of training: {format_hours(sum(self.hours))} ({phases})")
        return lines


def outlook(
    name: str,
    out: Path | None,
    data: Path | None,
    speed: float | None,
    overrides: Sequence[str] = (),
    workers: int = 1,
) -> Outlook:
    """Plan a recipe by path or bundled name.

    out: a build, or where one will be: what it measured is taken, and what a build into it would
    reuse is worked out. data: raw files (beside the recipe by default), from a few of which is
    estimated what is not built. speed: tokens a second. overrides: `--set` assignments over the
    recipe. workers: processes that look for shared texts. Raises UsageError for a speed that is
    none.
    """
    if speed is not None and not speed > 0:
        raise UsageError(f"--speed: must be positive, got {speed:g}")
    recipe = load(name, overrides=overrides)
    built = [] if out is None else [place.parent.name for place in BuildFolder(out).sealed()]
    sampled = {} if data is None else sample_sources.sampled(recipe, data, built)
    phases = plan(recipe, out, sampled)
    hours = () if speed is None else tuple(phase.tokens / speed / 3600 for phase in phases)
    documents = {} if out is None else {s: BuildFolder(out).documents(s) for s in recipe.sources}
    shared = shared_texts.find(recipe, list(recipe.phases), documents, workers=workers)
    reads = Reads.of(draws(recipe, phases))
    outcome, unknown = None, ""
    if out is not None:
        declared = {k: round(d.tokens) for k, d in recipe.domains.items() if d.tokens}
        root = find(name).parent if data is None else data
        try:
            outcome = reuse(recipe, root, out, {**declared, **sampled})
        except CrystalmixError as error:  # raw files or the tokenizer are elsewhere
            unknown = str(error)
    disk = _disk(recipe, out, sampled)
    return Outlook(
        phases=tuple(phases),
        disk=disk,
        hours=hours,
        shared=shared,
        reads=reads,
        reuse=outcome,
        unknown=unknown,
        copies=copies(recipe, out),
        passing=_passing(recipe, out, sampled),
    )


def plan_lines(plans: Sequence[PhasePlan]) -> list[str]:
    """Return the tables of a plan."""
    lines: list[str] = []
    for phase in plans:
        lines += [
            f"{phase.name}: {phase.steps:,} steps x {phase.batch:,} rows x {phase.msl:,} tokens = "
            f"{phase.tokens:,} tokens ({_asked(phase)})"
        ]
        rows = [
            [
                f"  {part.name}",
                f"{part.asked:.6f}",
                f"{part.rows:,}",
                f"{part.tokens:,}",
                "?" if part.available is None else f"{part.available:,}",
                "?" if part.epochs is None else f"{part.epochs:.3f}",
                "?" if part.seen is None else f"{part.seen:,}",
                part.known,
            ]
            for part in phase.parts
        ]
        head = ["  part", "weight", "rows", "tokens", "available", "epochs", "seen before", "known"]
        lines += table(rows, head)
        if phase.order_bytes:
            size = f"{phase.order_bytes / 1e6:,.1f} MB"
            lines.append(f"  order {phase.order}: holds one byte for each of its positions, {size}")
        lines += [f"  note: {line}" for line in phase.notes]
        lines += [f"  refused: {line}" for line in phase.refusals]
        lines.append("")
    return lines[:-1]


def _asked(phase: PhasePlan) -> str:
    if phase.kind == "weight":
        return f"weights sum to {phase.asked_sum!r}"
    unit = "tokens" if phase.kind == "tokens" else "epochs"
    return f"{phase.asked_sum:,.10g} {unit} asked"


def _size(count: int) -> str:
    """Format a number of bytes.

    >>> _size(3_420_100_000_000), _size(4_600_000), _size(999)
    ('3,420 GB', '4.6 MB', '999 bytes')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            shown = count / unit
            return f"{shown:,.0f} {name}" if shown >= 100 else f"{shown:,.1f} {name}"
    return f"{count:,} bytes"


def _disk(recipe: Recipe, out: Path | None, sampled: Mapping[str, int]) -> int | None:
    """Return the bytes of all shards: as written, where a domain is built, else estimated."""
    written: dict[str, int] = {}
    for folder in [] if out is None else BuildFolder(out).sealed():
        if folder.parent.parent.name == DOMAINS:
            size = sum(shard.bytes or 0 for shard in rows_files(receipts.read(folder)))
            written[folder.parent.name] = written.get(folder.parent.name, 0) + size
    total = 0.0
    for name, domain in recipe.domains.items():
        tokens = sampled.get(name, domain.tokens)
        if name in written:
            total += written[name]
        elif tokens is None:
            return None
        else:
            rate = bytes_a_token(recipe.rows_of(name).msl)
            total += tokens * rate * _copies(recipe, name, tokens)
    return round(total)


def _passing(recipe: Recipe, out: Path | None, sampled: Mapping[str, int]) -> Passing | None:
    """Return what lies beside the shards while the largest domain is shuffled in two passes."""
    most: Passing | None = None
    for name, domain in recipe.domains.items():
        rows, tokens = recipe.rows_of(name), sampled.get(name, domain.tokens) or 0
        done = out is not None and (BuildFolder(out).shuffled(name) / receipts.NAME).exists()
        count = round(tokens / (rows.msl * rows.rows_per_shard))
        if domain.zoo_shuffle is not None:
            count = domain.zoo_shuffle.chunks
        size = round(tokens * bytes_a_token(rows.msl, alone=True))
        twice = shuffle.in_two_passes(domain, count, tokens)
        if twice and not done and size > (most.bytes if most else 0):
            most = Passing(name, size)
    return most


def _copies(recipe: Recipe, name: str, tokens: float) -> int:
    """Return how often a domain's rows are written: packed, permuted, shuffled or joined."""
    domain = recipe.domains[name]
    if is_laid_out(recipe, name, round(tokens * TEXT_BYTES_A_TOKEN)):
        return 1
    permuted = domain.fim is not None and domain.fim.level == "row"
    last = bool(domain.shuffle) or domain.epochs > 1
    return 1 + permuted + last
