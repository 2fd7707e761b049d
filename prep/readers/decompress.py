"""Unpacking: the bytes and lines of a raw file, decompressed in bounded pieces, as UTF-8.

What is cut short or damaged is refused, never taken for the end: frames and streams are followed
by hand where the libraries take a missing end for an end.
"""

import bz2
import codecs
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from crystalmix.prep.readers.batch import TRAILING
from crystalmix.prep.readers.files import HEAD, Reads, check_head, opened, shown
from crystalmix.prep.runtime.errors import BrokenFile, CrystalmixError
from crystalmix.prep.runtime.machine import machine_error

PIECE = 1 << 20
# A zstd block of 4 bytes may stand for 128 KiB: this many bytes give 128 MiB at most.
ZSTD_PIECE = 1 << 12
READ_PIECES = 16  # pieces that are read at once
BOM = codecs.BOM_UTF8
# First bytes of a file: the `format` and the name of what it is.
MAGIC = {
    b"\x28\xb5\x2f\xfd": ("jsonl.zst", "zstd"),
    b"\x1f\x8b": ("jsonl.gz", "gzip"),
    b"BZh": ("jsonl.bz2", "bzip2"),
    b"\xfd7zXZ\0": ("jsonl.xz", "xz"),
    b"PAR1": ("parquet", "parquet"),
    b"ARROW1": ("arrow", "Arrow IPC"),
}
XZ_MEMORY = 256 << 20  # bytes that a dictionary may take
BLANK, BLANKS = re.compile(rb"\s*\n"), re.compile(rb"\n\s*\n")  # lines that hold nothing
SHIFTS = 3  # sequences after which plain ASCII is taken for UTF-7
# The stubs type ISA-L's error as an instance.
CORRUPT: Any = (EOFError, OSError, zstandard.ZstdError, isal_zlib.error, lzma.LZMAError)


class Filled:
    """Pieces of lines without most of the blank ones, which a file may hold millions of.

    blank_lines: that were left out before the line which the reader of the pieces is at.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self.blank_lines = pieces, 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield pieces; the lines of one must be taken before the next one is."""
        begins = True  # whether the next piece begins a line
        for piece in self._pieces:
            start = 0
            if begins and (lead := BLANK.match(piece)):
                self.blank_lines += piece.count(b"\n", 0, start := lead.end())
            if b"\n\n" in piece or b"\n\r\n" in piece:
                for run in BLANKS.finditer(piece, start):
                    yield piece[start : run.start() + 1]
                    start = run.end()
                    self.blank_lines += piece.count(b"\n", run.start() + 1, start)
            if tail := piece[start:] if start else piece:
                yield tail
            begins = piece.endswith(b"\n") if piece else begins


def lines(pieces: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    r"""Yield lines without their `\n`; None for a line longer than `limit`, never held whole.

    Lines end at `\n` only: U+2028, `\r` and the like belong to a text.
    """
    line: list[bytes] = []  # the line begun; joined once, so that a long line costs its length
    size, fault = 0, None
    try:
        for piece in pieces:
            first, *others = piece.split(b"\n")
            size += len(first)
            if size <= limit:
                line.append(first)
            else:
                line.clear()
            if others:
                yield b"".join(line) if size <= limit else None
                yield from others[:-1]
                line, size = [others[-1]], len(others[-1])
    except BrokenFile as error:
        if error.reason != TRAILING:
            raise
        fault = error
    if size:
        yield b"".join(line) if size <= limit else None
    if fault is not None:
        raise fault


def pieces(
    root: Path, name: str, packing: str, encoding: str | None, window_log: int
) -> Iterator[bytes]:
    """Yield a file's content in pieces of at most 1 MiB, without a BOM, as UTF-8.

    encoding: what to decode from; without one, UTF-8 is expected (a reader of it tells what is
    not) and a file that is plainly in another encoding is refused.
    """
    where = shown(root, name)
    with opened(root, name) as file:
        _check_kind(where, file.peek(HEAD), packing)
        unpack = {"": _plain, "gz": _gzip, "bz2": _bzip2, "xz": _xz}.get(packing)
        raw = unpack(where, file) if unpack else _zstd(where, file, window_log)
        small = (
            piece[i : i + PIECE] if len(piece) > PIECE else piece
            for piece in raw
            for i in range(0, len(piece), PIECE)
        )
        yield from _decoded(where, small, encoding) if encoding else _checked(where, small)


def _check_kind(where: str, head: bytes, packing: str) -> None:
    """Raise BrokenFile for a Git LFS pointer, and for another kind of file than its name says."""
    check_head(where, head)
    for magic, (form, name) in MAGIC.items():
        if head.startswith(magic) and form != f"jsonl.{packing}":
            raise BrokenFile(
                f"{where}: is {name} by its content; set `format: {form}` or mend its name",
                "format",
            )


def _checked(where: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for first in pieces:
        if other := _encoding(first):
            raise BrokenFile(
                f"{where}: is not UTF-8 but {other}, it seems; set `encoding` to read it, "
                "or `encoding: utf-8` if it is",
                "encoding",
            )
        yield first.removeprefix(BOM)
        break
    yield from pieces


def _encoding(first: bytes) -> str | None:
    """Tell the encoding of a file from its first bytes, where it is plainly not UTF-8."""
    for mark, name in ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32")):
        if first.startswith(mark):
            return name
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if b"\0" in first[:4] and first[:1] in b"{[\0":  # JSON begins with ASCII
        return "UTF-32" if b"\0\0" in first[:4] else "UTF-16"
    return "UTF-7" if first.isascii() and first.count(b"+") >= SHIFTS and _shifts(first) else None


def _shifts(first: bytes) -> bool:
    """Tell whether every `+` of a text begins a sequence of UTF-7."""
    whole = first[: first.rfind(b"\n") + 1] or first
    try:
        text = whole.decode("utf-7")
    except UnicodeDecodeError:
        return False
    return not text.isascii() and "+" not in text


def _decoded(where: str, pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    first = True
    try:
        for piece in pieces:
            text = decoder.decode(piece)
            yield (text.removeprefix("\ufeff") if first else text).encode()
            first = first and not text
        yield decoder.decode(b"", True).encode()
    except UnicodeError as error:
        raise BrokenFile(
            f"{where}: is not {encoding} ({error}); mend `encoding`", "encoding"
        ) from None


def _plain(_: str, file: Reads) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _gzip(where: str, file: Reads) -> Iterator[bytes]:
    empty = True
    try:
        with igzip.IGzipFile(fileobj=cast(BinaryIO, file)) as plain:
            while piece := plain.read(PIECE):
                empty = False
                yield piece
    except CORRUPT as error:
        raise _corrupt(where, error) from None
    if empty and file.seekable() and file.tell() == 0:
        raise _empty(where, "gzip")


def _bzip2(where: str, file: Reads) -> Iterator[bytes]:
    return _streams(where, file, bz2.BZ2Decompressor, "bzip2")


def _xz(where: str, file: Reads) -> Iterator[bytes]:
    def decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)

    return _streams(where, file, decoder, "xz")


def _streams(
    where: str,
    file: Reads,
    make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor],
    kind: str,
) -> Iterator[bytes]:
    """Yield the content of streams, one behind the other; zeros between them are padding (xz)."""
    decoder, fed, ever = make(), False, False
    try:
        while piece := file.read(PIECE):
            ever = True
            if not fed and kind == "xz":
                piece = piece.lstrip(b"\0")
            while piece or not decoder.needs_input:
                out, fed = decoder.decompress(piece, PIECE), True
                if out:
                    yield out
                piece = b""
                if decoder.eof:
                    piece, fed, decoder = decoder.unused_data, False, make()
                    piece = piece.lstrip(b"\0") if kind == "xz" else piece
    except CORRUPT as error:
        if "Memory usage limit" in str(error):
            raise BrokenFile(
                f"{where}: needs over {XZ_MEMORY >> 20} MiB to unpack; pack it again with `xz -6`",
                "window",
            ) from None
        raise _corrupt(where, error) from None
    if fed:
        raise _cut(where, f"{kind} stream")
    if not ever:
        raise _empty(where, kind)


def _cut_to(file: Reads, size: int) -> Iterator[bytes]:
    """Yield a file in pieces of a size, a whole number of which is read at once."""
    while block := file.read(READ_PIECES * size):
        for start in range(0, len(block), size):
            yield block[start : start + size]


def _zstd(where: str, file: Reads, window_log: int) -> Iterator[bytes]:
    # The stream reader of the library takes a truncated file for its end.
    library = zstandard.ZstdDecompressor(max_window_size=1 << window_log)
    decoder, fed, frames = library.decompressobj(), False, 0
    try:
        for packed in _cut_to(file, ZSTD_PIECE):
            piece = packed
            while piece:
                fed = True
                out = decoder.decompress(piece)
                if out:
                    yield out
                piece = b""
                if decoder.eof:
                    piece, fed, decoder = decoder.unused_data, False, library.decompressobj()
                    frames += 1
    except CORRUPT as error:
        if "too much memory" in str(error):
            raise BrokenFile(
                f"{where}: needs a window of over {1 << window_log >> 20} MiB (zstd --long); "
                "set max_window_log: 31, at the cost of as much memory",
                "window",
            ) from None
        if frames and "Unknown frame" in str(error):
            raise BrokenFile(
                f"{where}: {frames} whole zstd frames, then bytes that are none; fetch the file "
                "again, or set `on_error: skip` to keep the frames",
                TRAILING,
            ) from None
        raise _corrupt(where, error) from None
    if fed:
        raise _cut(where, "zstd frame")
    if not frames:
        raise _empty(where, "zstd")


def _corrupt(where: str, error: Exception) -> CrystalmixError:
    if trouble := machine_error(error, where):
        return trouble
    cut = isinstance(error, EOFError)
    return BrokenFile(
        f"{where}: can't be read to its end ({error}); fetch the file again",
        "truncated" if cut else "corrupt",
    )


def _cut(where: str, kind: str) -> BrokenFile:
    return BrokenFile(
        f"{where}: is truncated (a {kind} does not end); fetch the file again", "truncated"
    )


def _empty(where: str, kind: str) -> BrokenFile:
    return BrokenFile(f"{where}: is empty, not even a {kind} header; fetch the file again", "empty")
