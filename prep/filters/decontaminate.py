"""Decontamination: documents that share a run of words with evaluation files are dropped.

The runs of the evaluation files are hashed once to an index, a sorted array on disk; a document is
contaminated if one of its own runs is in it. Runs of few distinct words are left out of the index:
numbers and single letters count as one word together, since counting is no contamination.

An item is one record of an evaluation file. It is protected if one of its texts has a run in the
index. With `short: whole` a text of fewer words than a run, but of SHORT_WORDS or more distinct
ones, is a run by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from crystalmix.prep.filters import ngrams
from crystalmix.prep.filters.counts import EvaluationFile, IndexCounts
from crystalmix.prep.filters.ngrams import Words
from crystalmix.prep.readers.files import local
from crystalmix.prep.readers.listing import below, fits, kind
from crystalmix.prep.runtime.atomic_files import is_url, replacing
from crystalmix.prep.runtime.constraints import AtLeastOne, enforce
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.types import Content, Strict, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crystalmix.prep.readers import decompress

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TEXT = ".txt"
SHORT_WORDS = 5  # distinct words of a short text that is matched whole, at least
LINE_BYTES = 64 << 20  # the longest line of an evaluation file
WINDOW_LOG = 28
MOST_BITS = 26  # of the table that is looked at before the index


@frozen
class Decontaminate(Strict):
    """Evaluation files, and how much of them a document may share.

    files: paths, folders or globs relative to the data root (JSON lines, plain or packed, parquet,
    txt: one text a file).
    columns: dotted columns of their records, all their strings by default. ngram: words in a run.
    distinct: runs with fewer distinct words are no contamination. short: what becomes of texts with
    fewer words than a run: `skip` (they protect nothing), or `whole` (a document must not hold the
    whole text, if it has at least 5 distinct words).
    """

    files: tuple[str, ...]
    columns: tuple[str, ...] = ()
    ngram: AtLeastOne = 13
    distinct: int = 8
    short: Literal["skip", "whole"] = "skip"

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files: must name at least one evaluation file, got none")
        enforce(self)
        if not 1 <= self.distinct <= self.ngram:
            raise ValueError(f"distinct: must lie in [1, {self.ngram}], got {self.distinct}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of runs in the index, in words."""
        short = range(SHORT_WORDS, self.ngram) if self.short == "whole" else ()
        return (self.ngram, *short)

    def content(self) -> Content:
        """Return the settings as receipts hold them; `short` is omitted at its default."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("short", "skip")}


def files(settings: Decontaminate, root: Path) -> list[str]:
    """List the evaluation files relative to the root, sorted within each pattern."""
    listed: dict[str, None] = {}
    for pattern in settings.files:
        if Path(pattern).is_absolute():
            raise RecipeError(
                f"decontaminate: files: {pattern} is absolute; give it relative to the data root"
            )
        if is_url(root):
            every = below(pattern, root, "text" if pattern.endswith(TEXT) else None)
            paths = sorted(name for name, why in every if not why or name.endswith(TEXT))
            listed.update(dict.fromkeys(paths))
            if paths:
                continue
        path = root / pattern
        names = [path] if path.is_file() else path.rglob("*") if path.is_dir() else ()
        names = [*(names or root.glob(pattern))]
        paths = sorted(p.relative_to(root).as_posix() for p in names if _is_evaluation(p))
        if not paths:
            raise InputError(
                f"{path}: matches no evaluation file (JSON lines, parquet, txt); check the path"
            )
        listed.update(dict.fromkeys(paths))
    return list(listed)


def write_index(settings: Decontaminate, root: Path, out: Path) -> IndexCounts:
    """Write the index of the evaluation files: (2, runs) uint64, sorted hashes and their files."""
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    counts: list[EvaluationFile] = []
    texts = short = plain = 0
    for number, name in enumerate(files(settings, root)):
        long, protected, last = set[int](), set[int](), -1
        for items, part in _texts(root, name, settings.columns):
            words = ngrams.words(part)
            sizes = np.diff(words.bounds)
            runs, starts, left_out = _runs(words, sizes, settings)
            hashes.append(runs)
            owners.append(np.full(len(runs), number, np.uint64))
            texts, short = texts + len(part), short + int((sizes < settings.ngram).sum())
            plain, last = plain + left_out, int(items[-1])
            long |= set(items[sizes >= settings.ngram].tolist())
            of_run = np.searchsorted(words.bounds, starts, side="right") - 1
            protected |= set(items[of_run].tolist())
        counts.append(
            EvaluationFile(name, last + 1, len(protected), last + 1 - len(long | protected))
        )
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.save(file, np.stack([unique, np.concatenate(owners)[first]]))
    return IndexCounts(texts, len(unique), short, plain, tuple(counts))


def _runs(
    words: Words, sizes: NDArray[np.int64], settings: Decontaminate
) -> tuple[NDArray[np.uint64], NDArray[np.int64], int]:
    """Return the runs to index, the first word of each, and how many are left out as plain."""
    runs, starts = ngrams.ngrams(words, settings.ngram)
    varied = _distinct(words, starts, settings.ngram) >= settings.distinct
    all_runs, all_starts = [runs[varied]], [starts[varied]]
    for size in settings.lengths[1:]:  # of whole texts
        begins = words.bounds[:-1][sizes == size]
        begins = begins[_distinct(words, begins, size) >= SHORT_WORDS]
        all_runs.append(ngrams.runs_of(words, begins, begins + size))
        all_starts.append(begins)
    return np.concatenate(all_runs), np.concatenate(all_starts), int((~varied).sum())


class Index:
    """Index of runs, open for questions: which texts are contaminated, and by which file."""

    def __init__(self, path: Path, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.hashes, self.owners = np.load(path, mmap_mode="r")
        bits = min(MOST_BITS, max(8, len(self.hashes).bit_length() + 4))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, np.bool_)  # whether a hash with these first bits is there
        self.table[self.hashes >> self.shift] = True

    def hits(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return for each text the number of the evaluation file it shares a run with, or -1."""
        files = np.full(len(texts), -1, np.int64)
        for part in ngrams.groups(texts):
            words = ngrams.words(texts[part])
            for size in self.lengths[::-1]:  # a whole run of words has the last word
                documents, owners = self._hits(words, size)
                files[part.start + documents] = owners
        return files

    def _hits(self, words: Words, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the texts that share a run of so many words, and the file of its first."""
        runs, places = ngrams.ngrams(words, size)
        likely = np.flatnonzero(self.table[runs >> self.shift])
        at = np.searchsorted(self.hashes, runs[likely]).clip(0, max(0, len(self.hashes) - 1))
        sure = self.hashes[at] == runs[likely] if len(likely) else np.empty(0, np.bool_)
        owners = np.searchsorted(words.bounds, places[likely[sure]], side="right") - 1
        documents, first = np.unique(owners, return_index=True)
        return documents, self.owners[at[sure][first]].astype(np.int64)


@lru_cache(maxsize=2)
def index(path: Path, lengths: tuple[int, ...], _mark: str) -> Index:
    """Open an index once per process; the mark changes with the content at a path."""
    return Index(path, lengths)


def _distinct(words: Words, places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Count the distinct words of each run; numbers and single letters are one word together."""
    counts = np.empty(len(places), np.int64)
    if len(places) == 0:
        return counts
    letters = _letters()[np.frombuffer(words.data, np.uint8)]
    before = np.concatenate([[0], np.cumsum(letters)])
    plain = before[words.stops] == before[words.starts]  # numbers
    plain |= words.stops - words.starts == 1
    windows = np.lib.stride_tricks.sliding_window_view(
        np.where(plain, np.uint64(0), words.hashes), size
    )
    for first in range(0, len(places), 1 << 15):
        some = places[first : first + (1 << 15)]
        rows = np.sort(windows[some], axis=1)
        counts[first : first + len(some)] = 1 + (rows[:, 1:] != rows[:, :-1]).sum(axis=1)
    return counts


@lru_cache(maxsize=1)
def _letters() -> NDArray[np.bool_]:
    """Return which bytes of a word are no digits: (256,)."""
    letters = np.array([i < 48 or i >= 58 for i in range(256)])
    letters[ngrams.SPACE] = False
    return letters


def _is_evaluation(path: Path) -> bool:
    return path.is_file() and (fits(path.name, None) or path.name.endswith(TEXT))


def _texts(
    root: Path, name: str, columns: tuple[str, ...]
) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Yield the texts of an evaluation file in pieces, with the number of the item each is of.

    Records without a text are no items. Raises InputError where the file can't be read.
    """
    path = local(root, name)
    if path.name.endswith(TEXT):
        if path.stat().st_size > LINE_BYTES:
            raise InputError(f"{path}: is over {LINE_BYTES >> 20} MiB for one text; cut it up")
        try:
            yield np.zeros(1, np.int64), [path.read_text("utf-8-sig")]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 ({error.reason})") from None
        return
    count = 0
    for records in _records(root, name, path):
        by_item = [texts for record in records if (texts := list(_strings(record, columns)))]
        texts = [text for item in by_item for text in item]
        items = count + np.repeat(np.arange(len(by_item)), [len(item) for item in by_item])
        count += len(by_item)
        for part in ngrams.groups(texts):
            yield items[part], texts[part]
    if not count:
        where = ", ".join(columns) or "any column"
        raise InputError(f"{path}: has no text in {where}; check decontaminate.columns")


def _records(root: Path, name: str, path: Path) -> Iterator[list[Any]]:
    how = kind(name, None)
    if how is not None and how.family == "jsonl":
        raw = decompress.pieces(root, name, how.packing, None, WINDOW_LOG)
        for number, line in enumerate(decompress.lines(raw, LINE_BYTES)):
            if line is None or line.strip():
                yield [_parsed(f"{root / name}:{number + 1}", line)]
        return
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        if trouble := machine_error(error, root / name):
            raise trouble from None
        brief = str(error).splitlines()[0]
        raise InputError(f"{root / name}: can't be read as parquet ({brief})") from None


def _parsed(place: str, line: bytes | None) -> object:
    try:
        return orjson.loads(line or b"")
    except orjson.JSONDecodeError as error:
        raise InputError(f"{place}: is no JSON ({error}); mend the evaluation file") from None


def _strings(value: object, columns: tuple[str, ...]) -> Iterator[str]:
    """Yield the strings of a record: of some columns, or all of them."""
    if columns:
        for column in columns:
            inner = value
            for step in column.split("."):
                inner = inner.get(step) if isinstance(inner, dict) else None
            yield from _strings(inner, ())
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner, ())
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, ())
