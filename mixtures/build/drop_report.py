"""Reports of what sources drop: a line on stderr per source, and the list of all in one file.

What a setting chooses (`where`, `sample`, `limit`) gives no note. What lists and duplicates take
gives one where it is more than what stays.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.chat.counts import ChatCounts
from crystalmix.prep.documents.schema import BlockAccount
from crystalmix.prep.documents.source import Source, files, listing
from crystalmix.prep.filters.counts import IndexCounts
from crystalmix.prep.readers.listing import Listing
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import CrystalmixError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crystalmix.prep.documents import dropped as drop_lists

CHOSEN = ("where", "sample", "limit")
REMOVED = ("opt_out", "contaminated", "duplicate", "near_duplicate")
SHOWN = 3
SUFFIXES = (".parquet", ".jsonl")
BATCH_ROWS = 1 << 16


def tell_dropped(
    source: Source,
    kept: int,
    records: int,
    dropped: Mapping[str, int],
    broken: Mapping[str, int],
    where: str,
) -> None:
    """Note the records of a source that were dropped, and the files that were left out.

    kept: documents of the records. where: the end of the line.
    """
    removed = sum(dropped.get(reason, 0) for reason in REMOVED)
    quiet = (*CHOSEN, *REMOVED) if removed <= kept else CHOSEN
    counts = {reason: n for reason, n in dropped.items() if n and reason not in quiet}
    losses: list[str] = []
    if counts:
        lost = f"{sum(counts.values()):,} of {records:,} records dropped"
        losses.append(f"{lost} ({_counts(counts)})")
    if broken:
        losses.append(f"{_files(sum(broken.values()))} broken ({_counts(broken)})")
    if losses:
        _note(f"source {source.name}: {', '.join(losses)}{where}")


def tell_conversations(domain: str, counts: ChatCounts, out: Path) -> None:
    """Note the conversations of a domain that are not written, and turns of long ones left out."""
    losses: list[str] = []
    if lost := sum(counts.dropped.values()):
        all_of = f"{lost:,} of {counts.conversations:,} conversations dropped"
        losses.append(f"{all_of} ({_counts(counts.dropped)})")
    if counts.left_out:
        losses.append(f"{counts.left_out:,} turns left out of those that fit no row whole")
    if losses:
        _note(f"domain {domain}: {', '.join(losses)}; crystalmix show {out} tells more")


def tell_long(domain: str, way: str, documents: tuple[int, int], tokens: tuple[int, int]) -> None:
    """Note the documents of a domain that are left out or shortened, as they are over a row long.

    way: the `too_long` of its rows. documents, tokens: how many of how many are longer, or lost.
    """
    if tokens[0]:
        done = "left out" if way == "drop" else "shortened to a row"
        _note(
            f"domain {domain}: {documents[0]:,} of {documents[1]:,} documents are longer than a "
            f"row and {done} (too_long: {way}): {tokens[0]:,} of {tokens[1]:,} tokens"
        )


def tell_unprotected(source: Source, counts: IndexCounts | None) -> None:
    """Note the evaluation files of which not every item is protected from being trained on."""
    if counts is None or (settings := source.select.decontaminate) is None:
        return
    whole = settings.short == "whole"
    for file in counts.files:
        if file.protected < file.items:
            protected = f"{file.protected:,} of {file.items:,} items are protected"
            short = f"{file.short:,} too short; set `short: whole` to match short texts whole"
            line = f"{protected}, {short}" if file.short and not whole else protected
            _note(f"source {source.name}: decontaminate: {file.file}: {line}")


def tell_sampled(source: Source, accounts: Sequence[BlockAccount]) -> None:
    """Note what was dropped of the blocks that an estimate looked at: their accounts."""
    dropped: Counter[str] = Counter()
    for account in accounts:
        dropped.update(account.dropped)
    broken = Counter(account.broken.reason for account in accounts if account.broken)
    records = sum(account.records for account in accounts)
    kept = sum(account.documents for account in accounts)
    tell_dropped(source, kept, records, dropped, broken, f", of {_files(len(accounts))} looked at")


def tell_unread(recipe: Recipe, root: Path, source: Source, blocks: Listing) -> None:
    """Note the files in a source's folders that neither it nor another source reads."""
    skipped = [f"{name} {why}" for name, why in blocks.skipped if not why.startswith("is the same")]
    if skipped:
        _note(f"source {source.name}: {_files(len(skipped))} left out ({_first(skipped)})")
    read = _read(recipe, root) if blocks.others else set[str]()
    others = (name for name in blocks.others if name.rpartition("/")[2] != receipts.NAME)
    unread = [name for name in others if name not in read]
    if unread:
        verb = "is" if len(unread) == 1 else "are"
        line = f"{_files(len(unread))} of other kinds {verb} not read ({_first(unread)})"
        _note(f"source {source.name}: {line}")


def check_list(path: Path | None) -> None:
    """Raise UsageError for a drop list that can't be written to, before a build begins."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--dropped {path}: must end in .parquet or .jsonl")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--dropped {path}: must be a file in a folder that exists")


def write_list(folders: Mapping[str, Path], path: Path) -> None:
    """Write what sealed sources dropped, in their order: `source` first, digests in hex in JSON.

    The file is there when it is whole; memory does not grow with it.
    """
    parquet = path.suffix == ".parquet"
    named = pa.field("source", pa.dictionary(pa.int32(), pa.string()))
    schema = drop_lists.SCHEMA.insert(0, named)
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = pq.ParquetWriter(file, schema, compression="zstd") if parquet else None
        for name, folder in folders.items():
            with pq.ParquetFile(folder / drop_lists.NAME, pre_buffer=False) as source:
                for batch in source.iter_batches(BATCH_ROWS):
                    names = pa.array([name] * len(batch), pa.string()).dictionary_encode()
                    table = pa.table([names, *batch.columns], schema=schema)
                    if writer is None:
                        file.writelines(_lines(table))
                    else:
                        writer.write_table(table)
        if writer is not None:
            writer.close()


def _lines(table: pa.Table) -> list[bytes]:
    rows = table.to_pylist()
    return [
        orjson.dumps({**row, "digest": row["digest"] and row["digest"].hex()}) + b"\n"
        for row in rows
    ]


def _read(recipe: Recipe, root: Path) -> set[str]:
    """Return the files that a recipe's sources read, as far as they exist, and its lists."""
    names: set[str] = set()
    for source in recipe.sources.values():
        names |= {opt_out.file for opt_out in source.select.opt_out}
        if source.hub is not None:
            continue
        try:
            for block in listing(source, root).names:
                names.update(files(root, block) if source.format == "text" else [block])
        except CrystalmixError:
            continue  # reported where the source is built
    return names


def _counts(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {n:,}" for reason, n in most)


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def _note(line: str) -> None:
    logging.getLogger("crystalmix").warning("%s", line)
