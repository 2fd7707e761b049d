"""Sources: which raw files there are, and their records as Arrow batches.

A block is one raw file, a folder of text files, or one shard of a hub dataset: the unit of parallel
work. What is broken in it is counted and reported, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import orjson
import xxhash

from crystalmix.prep.documents import conversations
from crystalmix.prep.documents.about import About
from crystalmix.prep.documents.conversations import ConversationSettings
from crystalmix.prep.filters.screen import Selection
from crystalmix.prep.readers import files as rawfiles
from crystalmix.prep.readers.batch import TRAILING, Bad, Batch, Request, place
from crystalmix.prep.readers.files import Stamp, path_of, shown
from crystalmix.prep.readers.listing import FORMATS, Kind, Listing, kind, listed
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import BrokenFile, InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    from crystalmix.prep.readers import columnar, decompress, hub, jsonlines, textfiles

CHAT = "chat"
# Settings of a source that its reader knows nothing of.
OF_ONE_SOURCE = {
    *("name", "files", "half", "where", "identity", "keep", "select"),
    *("ftfy", "metadata", "blank", "about"),
}
NUMBER = re.compile(r"(\d+)(?:-of-\d+)?(?=\.)")


@frozen
class Source(Strict):
    """Raw files of one kind and how to read them.

    files: paths, folders (read to any depth), globs or urls, paths relative to the data root; or
    `hub`, a dataset that `datasets` loads (a hub id, or a builder such as `json` with
    `data_files`). format: one of FORMATS, where a file's suffix does not say it; `text` makes each
    file a document, `chat` each record a conversation (`chat.jsonl` and the like where the suffix
    does not say more). encoding: what to decode from, if not UTF-8.
    text: the column of the text, dotted where nested. columns: our name -> theirs, dotted where
    nested; `text` may stand here too. where: SQL over the columns (DuckDB). identity: SQL for a
    document's name. keep: SQL columns to keep as text beside each document.
    half: only the files with an even or odd number. ftfy: repair the text before tokenising.
    metadata: literals at a text's head that become special ids, `TOKEN` or `TOKEN=KEPT COLUMN`.
    blank: what becomes of a text without a visible character (an empty one is always dropped).
    on_error: what a broken file does: stop the build, or be left out and counted.
    max_bad_records: broken records of a file to count before the file is broken.
    max_record_bytes: the longest line, cell or text file. max_window_log: of zstd, 28 is 256 MiB.
    select: which of its documents stay. conversations: how records hold them, with `format: chat`.
    about: what it is, for cards; no digest holds it.
    """

    name: str
    files: tuple[str, ...] = ()
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    data_files: tuple[str, ...] = ()
    format: str | None = None
    encoding: str | None = None
    text: str = "text"
    columns: dict[str, str] = field(default_factory=dict[str, str])
    where: str | None = None
    identity: str | None = None
    keep: tuple[str, ...] = ()
    half: Literal["even", "odd"] | None = None
    ftfy: bool = False
    metadata: tuple[str, ...] = ()
    blank: Literal["drop", "keep"] = "drop"
    on_error: Literal["stop", "skip"] = "stop"
    max_bad_records: int = 100
    max_record_bytes: int = 32 << 20
    max_window_log: int = 28
    select: Selection = field(default_factory=Selection)
    conversations: ConversationSettings = field(default_factory=ConversationSettings)
    about: About | None = None

    def __post_init__(self) -> None:
        if self.hub is not None and self.files:
            raise ValueError("files: stands beside hub; name one of the two")
        if self.hub is not None and self.half is not None:
            raise ValueError("half: goes by the numbers of files, but hub has none; drop it")
        form = self.file_format
        if form is not None and (form not in FORMATS or self.hub is not None):
            known = ", ".join((*FORMATS, CHAT))
            raise ValueError(f"format: must be of {known}, of files: {self.format!r}")
        self._check_chat()
        if self.format == "text" and self.half is not None:
            raise ValueError("half: goes by the numbers of files, not of texts; drop it")
        if self.format == "text" and self.identity is None:
            object.__setattr__(self, "identity", "path")
        if "text" in self.columns:
            if self.text not in ("text", self.columns["text"]):
                raise ValueError("columns: names the text, and so does `text`; drop one of them")
            object.__setattr__(self, "text", self.columns["text"])
        for key, least, most in (
            ("max_bad_records", 0, 1 << 62),
            ("max_record_bytes", 1, 1 << 30),
            ("max_window_log", 10, 31),
        ):
            if not least <= getattr(self, key) <= most:
                raise ValueError(f"{key}: must be {least} to {most}, got {getattr(self, key)}")
        if self.encoding is not None:
            _check_encoding(self.encoding)

    def _check_chat(self) -> None:
        """Refuse what can't go with conversations, and settings of them without any."""
        if not self.is_chat:
            if self.conversations != ConversationSettings():
                raise ValueError("conversations: need `format: chat`; set it, or drop them")
            return
        if self.file_format == "text":
            raise ValueError("format: files of chat hold records, not a text each; drop `.text`")
        for key in ("ftfy", "metadata"):
            if getattr(self, key):
                raise ValueError(f"{key}: can't go with `format: chat`; drop one of the two")

    @property
    def is_chat(self) -> bool:
        """Whether its records are conversations."""
        return self.format is not None and self.format.partition(".")[0] == CHAT

    @property
    def file_format(self) -> str | None:
        """The format of its files, None where their suffixes say it."""
        return (self.format or "").removeprefix(CHAT).removeprefix(".") or None

    def content(self) -> dict[str, Any]:
        """Return the settings as JSON; those of conversations only where there are some."""
        content = asdict(self)
        del content["about"]
        if not self.is_chat:
            del content["conversations"]
        return content

    @property
    def reading(self) -> str:
        """What its files are read by: sources of equal ones can share a reading."""
        content = {k: v for k, v in asdict(self).items() if k not in OF_ONE_SOURCE}
        return receipts.digest(content)

    @property
    def metadata_entries(self) -> list[tuple[str, str]]:
        """The literal and the column (or nothing) of each entry of `metadata`."""
        parts = [entry.partition("=") for entry in self.metadata]
        return [(literal.strip(), column.strip()) for literal, _, column in parts]

    @property
    def text_name(self) -> str:
        """The name by which the source's SQL knows the text; empty where it is nested."""
        return "text" if "text" in self.columns else "" if "." in self.text else self.text


def _check_encoding(name: str) -> None:
    try:
        b"a".decode(name)
    except LookupError as error:
        raise ValueError(f"encoding: {error}") from None
    except UnicodeDecodeError:
        pass  # half a character of a known encoding


@frozen
class Document:
    """One text and what identifies it."""

    number: int
    digest: int  # low 64 bits of the text's xxh3-128: what its random draws are keyed by
    text: str
    columns: tuple[str | None, ...] = ()  # those that the source's metadata name


def label(column: str) -> str:
    """Return the column name of a kept expression: the last step of a dotted path."""
    return column.rsplit(".", 1)[-1].strip('"')


def listing(source: Source, root: Path) -> Listing:
    """List a source's blocks, and the files that were left out with the reasons."""
    if source.hub is not None:
        return Listing(tuple(str(i) for i in range(_hub(source, root).num_shards)))
    if source.format == "text":
        return textfiles.blocks(source.name, source.files, root, "text")
    matches = listed(source.name, source.files, root, source.file_format)
    if source.half is None:
        return matches
    parity = 0 if source.half == "even" else 1
    names = tuple(name for name in matches.names if _number(source, name) % 2 == parity)
    if not names:
        raise InputError(
            f"source {source.name}: none of its {len(matches.names)} files has an {source.half} "
            "number; drop `half` or add files"
        )
    return replace(matches, names=names)


def blocks(source: Source, root: Path) -> list[str]:
    """List a source's blocks: names of files or folders, or numbers of hub shards."""
    return list(listing(source, root).names)


def read(
    source: Source, root: Path, block: str, values: tuple[tuple[str, ...], ...] = ()
) -> Iterator[Batch]:
    """Yield a block's records as batches; values: paths of what to read beside the text.

    Raises BrokenFile for a file that can't be read to its end, is not what it is read as, or has
    more broken records than `max_bad_records`; NoColumn for one without the text's column. With
    `on_error: skip`, garbage after whole frames ends the file: the `fault` of the last batch.
    """
    empty: Batch | None = None
    first: Bad | None = None
    records = bad = 0
    try:
        for batch in _records(source, root, block, values):
            records += len(batch)
            bad += len(batch.bad)
            first = first or next(iter(batch.bad), None)
            if bad > source.max_bad_records and records:
                raise _too_many(source, shown(root, block), batch, bad)
            if bad > max(1, source.max_bad_records) and first:
                raise _no_record(shown(root, block), first, bad)
            empty = empty or batch.emptied()
            yield batch
            del batch  # while the next one is read
    except BrokenFile as error:
        if error.reason != TRAILING or source.on_error == "stop" or empty is None:
            raise
        yield replace(empty, fault=error)
    if first and not records and (bad > 1 or first.reason == "not_object"):
        raise _no_record(shown(root, block), first, bad)


def identity(source: Source, root: Path, block: str) -> Stamp:
    """Return what a block looks like from outside: a file, or all files of a folder."""
    if source.format != "text":
        return rawfiles.stamp(root, block)
    return rawfiles.together({name: rawfiles.stamp(root, name) for name in files(root, block)})


def digest(source: Source, root: Path, block: str) -> str:
    """Return the xxh3-128 of a block's bytes, in hex; of a folder, over names and digests."""
    if source.format != "text":
        return rawfiles.digest(root, block)
    digests = [[name, rawfiles.digest(root, name)] for name in files(root, block)]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(digests))


def files(root: Path, block: str) -> list[str]:
    """Return the files of a block of texts, sorted."""
    return textfiles.names(root, block, "text")


def request(
    source: Source, root: Path, block: str, values: tuple[tuple[str, ...], ...] = ()
) -> Request:
    """Return what a reader of a block shall read."""
    where = shown(root, block) if source.hub is None else f"dataset {source.hub}"
    return Request(
        source=source.name,
        place=where,
        text=source.text,
        columns=source.columns,
        paths=values,
        hidden=source.text_name,
        max_record_bytes=source.max_record_bytes,
    )


def _records(
    source: Source, root: Path, block: str, values: tuple[tuple[str, ...], ...]
) -> Iterator[Batch]:
    """Yield a block's records, of chat with the text of each conversation."""
    if not source.is_chat:
        return _batches(source, root, request(source, root, block, values), block)
    reader = conversations.Reader(source.name, block, source.conversations, source.text, values)
    spec = request(source, root, block, (*values, *reader.paths))
    return reader.batches(_batches(source, root, replace(spec, text="", hidden=""), block))


def _batches(source: Source, root: Path, spec: Request, block: str) -> Iterator[Batch]:
    if source.hub is not None:
        yield from _read_hub(source, root, int(block), spec)
        return
    how = _kind(source, block)
    if how.family == "jsonl":
        raw = decompress.pieces(root, block, how.packing, source.encoding, source.max_window_log)
        yield from jsonlines.batches(raw, spec)
    elif how.family == "text":
        yield from textfiles.batches(root, block, spec, "text", source.encoding)
    else:
        read_file = columnar.parquet if how.family == "parquet" else columnar.arrow
        if rawfiles.url_of(root, block) or "\\" in block:  # Arrow opens no name that is not UTF-8
            with rawfiles.seekable(root, block) as file:
                yield from read_file(file, spec)
        else:
            yield from read_file(str(path_of(root, block)), spec)


def _read_hub(source: Source, root: Path, number: int, spec: Request) -> Iterator[Batch]:
    first = 0
    where = f"source {source.name}: dataset {source.hub}, shard {number}"
    for table in hub.tables(_hub(source, root), number, where):
        yield columnar.as_batch(table, spec, first)
        first += table.num_rows


def _hub(source: Source, root: Path) -> Any:  # noqa: ANN401  datasets ships no types
    name = source.hub or ""
    return hub.load(source.name, root, name, source.config, source.split, source.data_files)


def _kind(source: Source, block: str) -> Kind:
    match = kind(block, source.file_format)
    if match is None:
        raise InputError(f"source {source.name}: {block}: its name tells no format; set `format`")
    return match


def _number(source: Source, name: str) -> int:
    numbers = NUMBER.findall(PurePosixPath(name).name)
    if not numbers:
        raise InputError(
            f"source {source.name}: {name} has no number, so `half: {source.half}` can't place it; "
            "rename the file or drop `half`"
        )
    return int(numbers[-1])


def _too_many(source: Source, where: str, batch: Batch, bad: int) -> BrokenFile:
    past = batch.bad[source.max_bad_records - bad]  # the first past the limit, from the end
    return BrokenFile(
        f"{past.place or place(where, past.record)}: {past.reason} ({past.detail}); mend it, set "
        f"max_bad_records above {source.max_bad_records} in source {source.name}, "
        "or `on_error: skip` to leave such files out",
        "too_many_bad_records",
    )


def _no_record(where: str, first: Bad, bad: int) -> BrokenFile:
    return BrokenFile(
        f"{where}: none of its first {bad} records can be read ({first.place or first.record + 1}: "
        f"{first.reason}, {first.detail}); check `format` and `encoding`, "
        "or set `on_error: skip` to leave such files out",
        "no_record",
    )
