"""Measured ratios of a build: bytes and tokens of what it holds, by what they follow from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from crystalmix.mixtures.build.accounts import PackAccount
from crystalmix.mixtures.manifest.build_folder import BuildFolder, shards_of
from crystalmix.mixtures.plan.prospects import Prospect
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.store import store as artifacts
from crystalmix.prep.store.store import Store

with imported_later(__name__):
    from crystalmix.prep.rows import hdf5_layout

MOST_MARKS = 2000  # of token blocks, to know their bytes a token
# Where nothing is built that tells, as measured on code and prose (BENCHMARKS).
DOCUMENTS, BLOCKS = 0.045, 0.03  # bytes by raw byte
TOKEN, ROW, CHUNK = 1.3, 60.0, 100.0  # bytes of rows: of a token; beside, of a row and a chunk
SPANS = 0.05  # bytes by token of a row that is laid out only
LAID_OUT = "laid out"  # the key of all such rows
IDS = 0.8  # bytes by token


def bytes_a_token(msl: int, *, alone: bool = False) -> float:
    """Return the bytes by token of rows of msl tokens, where none are measured.

    alone: whether each row is deflated alone, as bucket files hold short ones, too.

    >>> [round(each, 2) for each in (bytes_a_token(128), bytes_a_token(2048))]
    [1.87, 1.38]
    >>> bytes_a_token(128, alone=True)
    2.55
    """
    together = 1 if alone else hdf5_layout.rows_together(hdf5_layout.CHUNK_ROWS, msl)
    return TOKEN + (ROW + CHUNK / together) / msl


@dataclass
class Ratio:
    """Sums of one amount and of another that it follows from, by key and in all."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, amount: float, of: float, *keys: str) -> None:
        """Count a pair of amounts under some keys, and among all."""
        for key in ("", *keys):
            before = self.sums.get(key, (0.0, 0.0))
            self.sums[key] = before[0] + amount, before[1] + of

    def known(self, *keys: str) -> float | None:
        """Return the ratio of the first key that is known."""
        for key in keys:
            amount, of = self.sums.get(key, (0.0, 0.0))
            if of:
                return amount / of
        return None

    def of(self, *keys: str) -> float | None:
        """Return the ratio of the first key that is known, else that of all; None without any.

        >>> ratio = Ratio()
        >>> ratio.add(30, 10, "web")
        >>> ratio.add(10, 10, "code")
        >>> ratio.of("web"), ratio.of("new", "code"), ratio.of("new"), Ratio().of("new")
        (3.0, 1.0, 2.0, None)
        """
        return self.known(*keys, "")


@dataclass
class Measured:
    """Ratios of a build, by source, domain and stage.

    documents: bytes of a source's documents by raw byte; blocks: of those of one file. tokens: by
    raw byte. ids: bytes of token blocks by token. filled: tokens of rows by token that comes in.
    rows: bytes by token of rows.
    """

    documents: Ratio = field(default_factory=Ratio)
    blocks: Ratio = field(default_factory=Ratio)
    tokens: Ratio = field(default_factory=Ratio)
    ids: Ratio = field(default_factory=Ratio)
    filled: Ratio = field(default_factory=Ratio)
    rows: Ratio = field(default_factory=Ratio)

    @classmethod
    def of(cls, build: BuildFolder, prospects: Iterable[Prospect]) -> Measured:
        """Read the receipts of a build, and what its store says of blocks."""
        measured, raw = cls(), dict[str, int]()
        for prospect in prospects:
            for block in (block for block in prospect.blocks if block.account is not None):
                measured.blocks.add(artifacts.size(block.part), block.bytes, prospect.source.name)
        sealed = [(place, receipts.read(place)) for place in build.sealed()]
        for place, receipt in sealed:
            if receipt.stage == "documents":
                files = [file for file in receipt.inputs["files"] if isinstance(file, dict)]
                raw[place.name] = sum(file["bytes"] for file in files)
                measured.documents.add(_size(build, place, receipt), raw[place.name], place.name)
        for place, receipt in sealed:
            if receipt.stage not in ("documents", "import"):
                measured._add_rows(build, place, receipt, raw)
        for size, tokens in islice(_blocks(build), MOST_MARKS):
            measured.ids.add(size, tokens)
        return measured

    def estimate(self, domain: str, raw: dict[str, int], tokens: int) -> None:
        """Split an unmeasured domain's tokens of one epoch by raw bytes; raw: bytes by source."""
        keys = [(f"{domain}/{source}", source) for source in raw]
        if all(self.tokens.known(*key) is None for key in keys):
            total = sum(raw.values())
            for (key, _), size in zip(keys, raw.values(), strict=True):
                self.tokens.sums[key] = tokens * size / max(1, total), size

    def _add_rows(
        self, build: BuildFolder, place: Path, receipt: Receipt, raw: dict[str, int]
    ) -> None:
        domain = place.parent.name
        tokens = sum(shard.rows * shard.msl for shard in shards_of(receipt))
        stage = receipt.stage
        keys = [stage, f"{stage}/{domain}", *([LAID_OUT] if receipt.shards else ())]
        self.rows.add(_size(build, place, receipt), tokens, *keys)
        if stage == "pack":
            account = PackAccount.of(receipt)
            self.filled.add(tokens, account.tokens_in, domain)
            for source, counts in account.sources.items():
                keys = source, f"{domain}/{source}"
                self.tokens.add(counts.tokens, raw.get(source, 0), *keys)


def _size(build: BuildFolder, place: Path, receipt: Receipt) -> int:
    """Return the bytes of a sealed folder, and of what finds documents in it."""
    beside = build.lookup / place.relative_to(build.path)
    files = [place / receipts.NAME, *beside.glob("*")]
    return sum(entry["bytes"] for entry in receipt.files) + sum(
        path.stat().st_size for path in files if path.is_file()
    )


def _blocks(build: BuildFolder) -> Iterator[tuple[int, int]]:
    """Yield bytes and tokens of the token blocks that the build's rows were made from."""
    store = Store(build.store, dry=True)
    for place in build.sealed():
        for key in store.uses(place.resolve().name).get("tokens", ()):
            path = store.file("tokens", key, ".ids")
            if (result := artifacts.done(path)) is not None:
                yield artifacts.size(path), result["tokens"]
