"""Conservation checks: a folder's account against itself, its files, and its inputs.

Each function takes receipts and gives one line for each disagreement. A line names the numbers;
the caller names the folder. `recount` reads the files and takes no number from a receipt.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from crystalmix.mixtures.build.accounts import (
    PackAccount,
    RowFimAccount,
    RowsAccount,
    SourceAccount,
    account_of,
    rows_of,
)
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, rows_files, shards_of
from crystalmix.mixtures.verify.shuffle_test import sampled
from crystalmix.prep.documents import dropped
from crystalmix.prep.filters.exact_duplicates import halves
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.receipts import FILE_KEYS, SHARD_KEYS, FileEntry, Receipt, Shard
from crystalmix.prep.runtime.types import Content, Json

IMPORT = "import"  # the stage of folders whose rows another program wrote
JOINED = ("shuffle", "join")  # stages that move rows
BATCH_ROWS = 1 << 16
RANGE_DOCUMENTS = 1 << 22  # whose digests are held at once: 240 MB while they are sorted


@dataclass(frozen=True)
class Check:
    """One file to read again: a shard, its spans alone, a source's documents, or what it dropped.

    shard: what the receipt says of one. tokenizer: whose control ids to count, None where it is not
    known. blocks: documents in each block of a source. folder_rows: rows of all shards of the
    folder. spans: whether it has spans. distinct: whether equal texts are to be counted.
    """

    path: Path
    shard: Shard | None
    tokenizer: Json | None
    blocks: tuple[int, ...] = ()
    folder_rows: int = 0
    spans: bool = False
    distinct: bool = False


@dataclass(frozen=True)
class SpanCounts:
    """What the spans of a shard hold: tokens of its rows, padding, documents begun."""

    tokens: int
    padding: int
    documents: int
    permuted: int


@dataclass(frozen=True)
class LaidOutCounts:
    """What the spans say of a shard whose rows are laid out only."""

    rows: int
    spans: SpanCounts


@dataclass(frozen=True)
class ShardCounts:
    """What a shard holds; hashes: of the rows that are looked at for equal ones.

    controls: control ids, padding included where it is one (`pads`); None where nobody says which.
    unerased: tokens that are no padding, or count, where the shard says that it was purged.
    """

    rows: int
    msl: int
    digest: str
    rows_sum: int
    loss_tokens: int
    hashes: NDArray[np.uint64]
    controls: int | None
    pads: bool
    spans: SpanCounts | None
    unerased: int = 0


@dataclass(frozen=True)
class DocumentCounts:
    """What a source's documents hold.

    dense: numbered without gaps. repeated: equal texts, where they are counted.
    """

    documents: int
    characters: int
    bytes: int
    content: str
    dense: bool
    repeated: int


@dataclass(frozen=True)
class DropCounts:
    """What a source dropped, and the files it left out, by reason."""

    dropped: dict[str, int]
    broken_files: dict[str, int]


Counts = ShardCounts | LaidOutCounts | DocumentCounts | DropCounts


def check_whole(folder: Path, receipt: Json) -> None:
    """Raise DamageError for a receipt that lacks what every receipt has."""
    lacks = [key for key in (*receipts.RECIPE_KEYS, "account", "content") if key not in receipt]
    if receipt.get("stage") == "documents":
        lacks += [key for key in ("blocks", "broken", "skipped") if key not in receipt]
    for entry in receipt.get("files", [{}]):
        kind = {*FILE_KEYS, *SHARD_KEYS} if str(entry.get("name")).endswith(".h5") else FILE_KEYS
        lacks += [f"files.{key}" for key in kind if key not in entry]
        if not isinstance(entry.get("name"), str):
            lacks.append("files.name")
    is_laid_out = receipt.get("settings", {}).get("written") is False
    for entry in receipt.get("shards", [{}] if is_laid_out else []):
        lacks += [f"shards.{key}" for key in SHARD_KEYS if key not in entry]
    if receipt.get("stage") == "documents":
        names = {entry.get("name") for entry in receipt.get("files", [])}
        lacks += [f"files.{name}" for name in (DOCUMENTS, dropped.NAME) if name not in names]
    if lacks:
        raise DamageError(
            f"{folder / receipts.NAME}: is no whole receipt (it lacks {lacks[0]}); build again"
        )


def checks(folder: Path, receipt: Receipt, inputs: Sequence[Receipt] = ()) -> list[Check]:
    """Return the files of a folder that are to be read again; inputs: receipts it was made from."""
    if receipt.stage == "documents":
        blocks = tuple(block.documents for block in receipt.blocks)
        distinct = receipt.settings.get("duplicates", {}).get("exact") != "none"
        return [
            Check(folder / DOCUMENTS, None, None, blocks, distinct=distinct),
            Check(folder / dropped.NAME, None, None),
        ]
    tokenizer, rows = receipt.settings.get("tokenizer"), rows_of(receipt)
    has_spans = tokenizer is not None
    if receipt.stage in JOINED and inputs:
        tokenizer = inputs[0].settings.get("tokenizer")
    every = receipt.shards or purged.entries(receipt)
    known = [entry for entry in every if receipt.shards or entry.xxh3 is not None]  # else: imported
    return [Check(folder / entry.name, entry, tokenizer, (), rows, has_spans) for entry in known]


def recount(check: Check) -> Counts:
    """Read a file again and count."""
    if check.path.name == DOCUMENTS:
        return _recount_documents(check)
    if check.path.name == dropped.NAME:
        return DropCounts(*dropped.counts(check.path))
    if check.shard is not None and check.shard.bytes is None:
        return LaidOutCounts(*_of_spans(check, check.shard.rows * check.shard.msl))
    return recount_shard(check)


def recount_shard(check: Check) -> ShardCounts:
    """Read a shard again and count, its spans too where there are any."""
    content = sha256()
    hashes: list[int] = []
    rows, msl = shards.shape(check.path)
    controls = counted = 0
    tokenizer = check.tokenizer or {"controls": [], "pad": None}
    control_ids = np.array(tokenizer["controls"], np.int32)
    for block in shards.blocks(check.path):
        content.update(np.ascontiguousarray(block, dtype="<i4").data)
        hashes += [xxhash.xxh3_64_intdigest(row.tobytes()) for row in block]
        controls += int(np.isin(block[:, 0], control_ids).sum())
        counted += int(np.count_nonzero(block[:, 1]))
    return ShardCounts(
        rows=rows,
        msl=msl,
        digest=content.hexdigest(),
        rows_sum=sum(hashes),
        loss_tokens=counted,
        hashes=sampled(np.array(hashes, np.uint64), check.folder_rows),
        controls=None if check.tokenizer is None else controls,
        pads=tokenizer["pad"] in tokenizer["controls"],
        spans=_of_spans(check, rows * msl)[1] if check.spans else None,
        unerased=_unerased(check.path),
    )


def _unerased(path: Path) -> int:
    """Count a shard's tokens in purged pieces that have a loss, or differ from each other."""
    side = spans.path_of(path, purged.SIDE)
    if not side.exists():
        return 0
    columns = [spans.read(side)[name].to_numpy() for name in ("row", "start", "stop")]
    rows = np.unique(columns[0])
    by_row = dict(zip(rows.tolist(), shards.take(path, rows), strict=True))
    ids, counted = set[int](), 0
    for row, start, stop in zip(*columns, strict=True):
        ids.update(by_row[int(row)][0, start:stop].tolist())
        counted += int(np.count_nonzero(by_row[int(row)][1, max(0, start - 1) : stop]))
    return counted + max(0, len(ids) - 1)


def _of_spans(check: Check, size: int) -> tuple[int, SpanCounts]:
    """Count the rows and the spans of a shard of so many ids."""
    table = spans.read(spans.path_of(check.path))
    first = table["offset"].to_numpy() == 0
    tokens = int((table["stop"].to_numpy() - table["start"].to_numpy()).sum())
    return len(pc.unique(table["row"])), SpanCounts(
        tokens=tokens,
        padding=size - tokens,
        documents=int(first.sum()),
        permuted=int((first & (table["fim"].to_numpy() > 0)).sum()),
    )


def _recount_documents(check: Check) -> DocumentCounts:
    """Count a source's documents, and digest the texts' digests of each block, batch by batch."""
    columns = ["document", "digest", "characters", "bytes"]
    sums, dense, rows = Counter[str](), True, 0
    blocks, state, size = list[tuple[str, int]](), xxhash.xxh3_128(), 0  # these of the next block
    with pq.ParquetFile(check.path, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            numbers = np.arange(rows, rows + batch.num_rows)
            dense = dense and np.array_equal(batch["document"].to_numpy(), numbers)
            for name in ("characters", "bytes"):
                sums[name] += int(batch[name].to_numpy().sum())
            rows, done = rows + batch.num_rows, 0
            while done < batch.num_rows and len(blocks) < len(check.blocks):  # else: too many
                count = min(check.blocks[len(blocks)] - size, batch.num_rows - done)
                state.update(_bytes_of(batch["digest"].slice(done, count)))
                size, done = size + count, done + count
                if size == check.blocks[len(blocks)]:
                    blocks.append((state.hexdigest(), size))
                    state, size = xxhash.xxh3_128(), 0
        repeated = _repeated(file) if check.distinct else 0
    while len(blocks) < len(check.blocks):  # too few documents, or empty blocks
        blocks.append((state.hexdigest(), size))
        state, size = xxhash.xxh3_128(), 0
    return DocumentCounts(
        documents=rows,
        characters=sums["characters"],
        bytes=sums["bytes"],
        content=receipts.digest(blocks),
        dense=dense,
        repeated=repeated,
    )


def _bytes_of(digests: Any) -> bytes:  # noqa: ANN401  an Arrow array of binary(16)
    array = digests.drop_null()
    width = array.type.byte_width
    first = array.offset * width
    return (
        array.buffers()[1][first : first + len(array) * width].to_pybytes() if len(array) else b""
    )


def _repeated(file: pq.ParquetFile) -> int:
    """Count documents whose text another has already, by ranges of digests that fit in memory."""
    passes = -(-file.metadata.num_rows // RANGE_DOCUMENTS)
    edges = [number * 2**64 // passes for number in range(1, passes)]
    repeated = 0
    for number in range(passes):
        parts: list[NDArray[np.uint64]] = []
        for batch in file.iter_batches(BATCH_ROWS, columns=["digest"], use_threads=False):
            repeated += batch["digest"].null_count * (number == 0)
            both = halves(batch["digest"].drop_null())
            own = np.searchsorted(np.array(edges, np.uint64), both[:, 0], side="right") == number
            parts.append(both[own])
        high, low = np.concatenate(parts).T
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        repeated += int(((high[1:] == high[:-1]) & (low[1:] == low[:-1])).sum())
    return repeated


def changed(check: Check, counts: Counts) -> Iterator[str]:
    """Yield where a file is not what its entry in the receipt says."""
    if isinstance(counts, DocumentCounts) and not counts.dense:
        yield "documents are not numbered 0, 1, 2, ..."
    if (shard := check.shard) is None:
        return
    if isinstance(counts, LaidOutCounts) and counts.rows != shard.rows:
        yield f"its spans are of {counts.rows} rows, its receipt says {shard.rows}"
    if not isinstance(counts, ShardCounts):
        return
    if counts.digest != shard.digest:
        yield f"its rows changed (sha256 {counts.digest}, receipt has {shard.digest})"
    for key in ("rows", "msl", "loss_tokens"):
        if getattr(counts, key) != getattr(shard, key):
            yield f"has {key} {getattr(counts, key)}, its receipt says {getattr(shard, key)}"
    if counts.unerased:
        yield f"holds {counts.unerased} tokens where it was purged; purge again"
    if counts.rows_sum % 2**64 != shard.rows_sum:
        yield "the sum over its rows is not what its receipt says"


def miscounted(receipt: Receipt, counts: Sequence[Counts]) -> Iterator[str]:
    """Yield where an account is not what its files hold; counts: `recount` of each file."""
    account = account_of(receipt)
    if isinstance(account, SourceAccount):
        keys = ("documents", "characters", "bytes", "dropped", "broken_files")
        claims: Content = {key: getattr(account, key) for key in keys}
        if receipt.settings["duplicates"]["exact"] != "none":
            claims["repeated"] = 0
        counted = {key: value for file in counts for key, value in vars(file).items()}
        yield from _unequal(counted, {**claims, "content": receipt.content})
        return
    shards = [file for file in counts if isinstance(file, ShardCounts | LaidOutCounts)]
    spans = [file.spans for file in shards if file.spans is not None]
    sums: Content = {"rows": sum(file.rows for file in shards)}
    sums["content"] = receipts.digest(_as_built(receipt, shards))
    claims = {"rows": account.rows, "content": receipt.content}
    if isinstance(account, RowsAccount):
        if spans:
            sums["padding"] = sum(file.padding for file in spans)
            sums["tokens_out"] = sum(file.tokens for file in spans)
            claims |= {"tokens_out": account.tokens_out, "padding": account.padding}
        controls = _controls(receipt, account.padding, counts)
        if controls is not None:
            sums["controls_out"], claims["controls_out"] = controls, account.controls_out
    if isinstance(account, PackAccount) and not sum(account.dropped.values()):
        sums["documents"] = sum(file.documents for file in spans)
        sums["permuted"] = sum(file.permuted for file in spans)
        claims |= {"documents": account.documents, "permuted": account.permuted}
    yield from _unequal(sums, claims)


def _as_built(
    receipt: Receipt, counts: Sequence[ShardCounts | LaidOutCounts]
) -> list[list[int | str]]:
    """Return rows and digest of shards; of those that were purged the digest that they had.

    Of rows that are laid out only nothing is left to digest: what the receipt says stands.
    """
    if receipt.shards:
        pairs = zip(counts, receipt.shards, strict=True)
        return [[file.rows, shard.digest] for file, shard in pairs]
    whole = [file for file in counts if isinstance(file, ShardCounts)]
    triples = zip(purged.entries(receipt), rows_files(receipt), whole, strict=True)
    return [
        [file.rows, built.digest if file.digest == now.digest else file.digest]
        for now, built, file in triples
    ]


def _controls(receipt: Receipt, padding: int, counts: Sequence[Counts]) -> int | None:
    """Return how many control ids a folder's rows hold without padding, None where none says.

    Of rows that were purged those are left out that they have since; shuffled ones don't say.
    """
    known = [f for f in counts if isinstance(f, ShardCounts) and f.controls is not None]
    marks = purged.Marks.of(receipt).shards.values()
    if not known or (marks and receipt.stage in JOINED):
        return None
    padding = padding if known[0].pads else 0
    more = sum(mark.controls for mark in marks)  # since pieces are padding
    return sum(file.controls or 0 for file in known) - padding - more


def _unequal(counts: Content, claims: Content) -> Iterator[str]:
    for key, value in claims.items():
        if counts[key] != value:
            yield f"holds {key} {counts[key]}, its account says {value}"


def unbalanced(receipt: Receipt) -> list[str]:
    """Return where a receipt's account breaks conservation."""
    account = account_of(receipt)
    gone = sum(account.dropped.values())
    if isinstance(account, SourceAccount):
        if account.records != account.documents + gone:
            return [
                f"records {account.records} are not documents {account.documents} + dropped {gone}"
            ]
        return []
    if not isinstance(account, RowsAccount):  # of an import
        rows = sum(shard.rows for shard in rows_files(receipt))
        return [] if rows == account.rows else [f"rows {account.rows} are not the {rows}"]
    lines: list[str] = []
    supply = account.tokens_in
    if isinstance(account, RowFimAccount):
        supply += account.sentinels + account.recut
    if supply != account.tokens_out + gone:
        lines.append(f"tokens in {supply} are not tokens out {account.tokens_out} + dropped {gone}")
    if isinstance(account, PackAccount):
        lines += _unbalanced_pack(account)
    if isinstance(account, RowFimAccount) and account.sentinels != 3 * account.permuted:
        lines.append(f"sentinels {account.sentinels} are not 3 for each {account.permuted}")
    return lines


def _unbalanced_pack(account: PackAccount) -> Iterator[str]:
    controls, chat = account.controls, account.chat
    if account.tokens_in != account.text_tokens + controls:
        yield (
            f"tokens in {account.tokens_in} are not text {account.text_tokens} "
            f"+ controls {controls}"
        )
    if not sum(account.dropped.values()) and controls != account.controls_out:
        yield f"controls {controls} are not controls out {account.controls_out}"
    if chat is not None and chat.conversations != chat.rendered + sum(chat.dropped.values()):
        yield (
            f"conversations {chat.conversations} are not written {chat.rendered} "
            f"+ dropped {sum(chat.dropped.values())}"
        )


def inherited(receipt: Receipt) -> dict[str, str]:
    """Return the folders that a folder was made from, and the digests of their contents."""
    inputs = receipt.inputs
    return inputs["earlier"] if receipt.stage == "documents" else inputs


def disinherited(receipt: Receipt, inputs: dict[str, Receipt | None]) -> list[str]:
    """Return where a folder does not follow from the folders it names as its inputs."""
    lines: list[str] = []
    for name, content in inherited(receipt).items():
        origin = inputs[name]
        if origin is None:
            lines.append(f"was made from {name}, which is not here")
        elif origin.content != content:
            lines.append(f"was made from another {name} than the one here; build again")
    accounts = [account_of(origin) for origin in inputs.values() if origin is not None]
    if lines or not accounts or receipt.stage == "documents":
        return lines
    if receipt.stage in JOINED:
        sums = [_rows_sum(shards_of(origin)) for origin in inputs.values() if origin is not None]
        if _rows_sum(shards_of(receipt)) != sum(sums) % 2**64:
            lines.append("its rows are not those of its inputs (the sums over them differ)")
    unit, account = {"pack": "documents", "fim": "rows"}.get(receipt.stage), account_of(receipt)
    pairs = {unit: unit} if unit else {key: key for key in ("rows", "controls_out", "padding")}
    if receipt.stage != "pack":
        pairs["tokens_in"] = "tokens_out"
    for own, theirs in pairs.items():
        total = sum(getattr(origin, theirs) for origin in accounts)
        count = getattr(account, own)
        if isinstance(account, PackAccount):  # of documents, whose all are these
            count = account.documents_taken + account.held_out + (account.spent or 0)
        if count != total:
            lines.append(f"its account has {own} {count}, its inputs have {theirs} {total}")
    return lines


def _rows_sum(every: Sequence[Shard]) -> int:
    return sum(shard.rows_sum or 0 for shard in every) % 2**64


def damages(folder: Path, entry: Json) -> list[str]:
    """Return what is wrong with one file of a receipt: its digest, or its size and shape."""
    if entry["xxh3"] is not None:
        return receipts.damages(folder, [FileEntry.from_json(entry)])
    path = folder / entry["name"]
    try:
        values = path.stat().st_size, *shards.shape(path)
    except FileNotFoundError:
        return [f"{path}: is missing, though the receipt lists it; restore it or import again"]
    except DamageError as error:
        return [str(error)]
    pairs = zip(("bytes", "rows", "msl"), values, strict=True)
    return [
        f"{path}: has {key} {value}, its receipt says {entry[key]}"
        for key, value in pairs
        if value != entry[key]
    ]


def tell_unread(out: Path, sealed: Collection[Receipt], note: Callable[[str], None]) -> None:
    """Note how many shards of a build can't be checked, for they were imported without digests."""
    entries = [e for receipt in sealed if receipt.stage == IMPORT for e in receipt.files]
    if count := sum(entry["xxh3"] is None for entry in entries):
        note(
            f"{out}: {count} shards were imported without digests: of them names, sizes and shapes "
            "were checked, not their rows"
        )
