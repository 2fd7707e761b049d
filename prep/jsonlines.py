"""JSON lines, plain or compressed, read line by line with an account of what is broken.

Lines end at `\\n` only: U+2028, `\\r` and the like belong to a text. Parsing is orjson's (strict
JSON and UTF-8, so lone surrogates and NaN are broken records, not guesses).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import zstandard
from isal import igzip, isal_zlib

from prep.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
INTEGERS = {"BIGINT", "UBIGINT", "HUGEINT"}  # as DuckDB names what it finds in JSON
RECORD, TEXT = "__record", "__text"  # columns of ours, beside those of the source
BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20
LINE_LIMIT = 256 << 20
WINDOW_LIMIT = 1 << 31
# The stubs type ISA-L's error as an instance.
UNREADABLE: Any = (EOFError, OSError, zstandard.ZstdError, isal_zlib.error)

Bad = tuple[tuple[int, str], ...]


def batches(path: Path, text: str, *, keep_lines: bool) -> Iterator[tuple[pa.Table, Bad]]:
    """Yield tables of RECORD, TEXT (null where it is none) and, if asked, `line`.

    RECORD is the line's number from 0; empty lines are no records. text is the dotted path of the
    text. `line` is the record as JSON; a text at its top is left out, for it is there already and
    would be parsed again. Raises InputError for a file that is missing, truncated or corrupt.
    """
    keys = text.split(".")
    records: list[int] = []
    texts: list[str | None] = []
    kept: list[str] = []
    bad: list[tuple[int, str]] = []
    size = 0
    for number, line in enumerate(_lines(path)):
        if not line or line.isspace():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            bad.append((number, f"bad_json: {error}"))
            continue
        if not isinstance(record, dict):
            bad.append((number, f"bad_json: a {type(record).__name__}, expected an object"))
            continue
        records.append(number)
        texts.append(_text(record, keys))
        if keep_lines:
            rest = {key: value for key, value in record.items() if [key] != keys}
            kept.append(orjson.dumps(rest).decode())
        size += len(line)
        if len(records) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _table(records, texts, kept, keep_lines=keep_lines), tuple(bad)
            records, texts, kept, bad, size = [], [], [], [], 0
    if records or bad:
        yield _table(records, texts, kept, keep_lines=keep_lines), tuple(bad)


def _table(
    records: list[int], texts: list[str | None], kept: list[str], *, keep_lines: bool
) -> pa.Table:
    columns = {RECORD: pa.array(records, pa.int64()), TEXT: pa.array(texts, pa.large_string())}
    if keep_lines:
        columns["line"] = pa.array(kept, pa.large_string())
    return pa.table(columns)


def _text(record: object, keys: list[str]) -> str | None:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record if isinstance(record, str) else None


def widened(shape: Any, found: Any) -> Any:  # noqa: ANN401  JSON structures
    """Return the columns of `shape`, wide enough for the values of `found` too.

    What was seen as a number first may be a text later on: unless its column is widened, DuckDB
    reads it as NULL. Whatever is of several kinds is text.

    >>> widened({"stars": "UBIGINT", "size": "UBIGINT"}, {"stars": "DOUBLE", "new": "BIGINT"})
    {'stars': 'DOUBLE', 'size': 'UBIGINT'}
    """
    unknown = found in ("NULL", "JSON")  # empty objects are JSON
    if isinstance(shape, dict) and (unknown or isinstance(found, dict)):
        known = found if isinstance(found, dict) else {}
        return {key: widened(kind, known.get(key, "NULL")) for key, kind in shape.items()}
    if isinstance(shape, list) and (unknown or isinstance(found, list)):
        return [widened(shape[0], found[0] if isinstance(found, list) else "NULL")]
    if shape == "NULL" and found != "NULL":
        return widened(found, "NULL")
    if not (isinstance(shape, str) and isinstance(found, str)):
        return "VARCHAR"
    kinds = {shape, found} - {"NULL"}
    if len(kinds) > 1:
        numbers = "HUGEINT" if kinds <= INTEGERS else "DOUBLE"
        return numbers if kinds <= INTEGERS | {"DOUBLE"} else "VARCHAR"
    return "VARCHAR" if kinds == {"JSON"} else shape


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file without their `\\n`."""
    rest: list[bytes] = []  # the line begun; joined once, so that a long line costs its length
    size = 0
    for piece in _pieces(path):
        first, *others = piece.split(b"\n")
        rest.append(first)
        size += len(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest, size = [others[-1]], len(others[-1])
        elif size > LINE_LIMIT:
            raise InputError(
                f"{path}: a line is longer than {LINE_LIMIT >> 20} MiB; is it JSON lines?"
            )
    if last := b"".join(rest):
        yield last


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".zst":
                yield from _zstd(path, file)
            elif path.suffix == ".gz":
                with igzip.IGzipFile(fileobj=file) as plain:
                    while piece := plain.read(1 << 20):
                        yield piece
            else:
                while piece := file.read(1 << 20):
                    yield piece
    except UNREADABLE as error:
        raise InputError(
            f"{path}: can't be read to its end ({error}); fetch the file again"
        ) from None


def _zstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    # Small pieces in, so that a highly compressed frame comes out in bounded pieces. The stream
    # reader of the library takes a truncated file for its end, so frames are followed by hand.
    decoder, fed = _decoder(), False
    while piece := file.read(1 << 12):
        while piece:
            fed = True
            out = decoder.decompress(piece)
            if out:
                yield out
            piece = b""
            if decoder.eof:
                piece, fed, decoder = decoder.unused_data, False, _decoder()
    if fed:
        raise InputError(f"{path}: is truncated (a zstd frame does not end); fetch the file again")


def _decoder() -> Any:  # noqa: ANN401  the library does not export the type
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).decompressobj()
