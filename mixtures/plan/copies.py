"""Copies: what the curve of a domain asks of its documents, and what it gave where it is built."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crystalmix.mixtures.build.accounts import PackAccount, upsampled_lines
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.report import bar
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.filters.counts import CopyCounts
from crystalmix.prep.filters.upsample import BUCKETS, Upsample
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.tables import table


@dataclass(frozen=True)
class CopiesPlan:
    """The copies of a domain's documents.

    mean: epochs of a document with a number, on average. asked: the same in each twentieth of the
    percentiles. sources: what each source's documents come to, None before the domain is built.
    """

    domain: str
    upsample: Upsample
    mean: float
    asked: tuple[float, ...]
    sources: dict[str, CopyCounts] | None

    def lines(self) -> Iterator[str]:
        """Yield a table with a bar for each bucket of percentiles."""
        settings = self.upsample
        yield (
            f"{self.domain}: documents by {settings.by} are taken {self.mean:.3f} times on "
            f"average, {settings.peak:g} at most; without a number {settings.missing}"
        )
        if self.sources is not None:
            yield from upsampled_lines(self.sources)
            return
        width = 100 // BUCKETS
        rows = [
            [f"  {i * width}-{(i + 1) * width} %", f"{epochs:.3f}", bar(epochs, max(self.asked))]
            for i, epochs in enumerate(self.asked)
        ]
        yield from table(rows, ["  percentile", "epochs asked", ""])


def copies(recipe: Recipe, out: Path | None) -> tuple[CopiesPlan, ...]:
    """Return the copies of each domain that upsamples and is drawn from; out: a build of it."""
    return tuple(
        CopiesPlan(
            name,
            domain.upsample,
            round(domain.upsample.mean, 6),
            tuple(domain.upsample.asked()),
            None if out is None else _built(BuildFolder(out), name, domain.upsample),
        )
        for name, domain in recipe.domains.items()
        if domain.upsample is not None and name in recipe.domains_of()
    )


def _built(build: BuildFolder, domain: str, upsample: Upsample) -> dict[str, CopyCounts] | None:
    """Return a domain's counts of copies by source, None where it is not built by this curve."""
    place = build.packed(domain)
    if not (place / receipts.NAME).exists():
        return None
    receipt = receipts.read(place)
    settings = receipt.settings.get("upsample")
    if settings is None or {**settings, "epoch": 0} != {**upsample.content(), "epoch": 0}:
        return None
    return PackAccount.of(receipt).upsampled
