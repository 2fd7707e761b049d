"""A plain reference for bench_prep: the original's algorithm in the plainest terms, to be timed.

JSON lines are read one by one, each text repaired by ftfy if asked, cut in pieces of 2,000
characters, each piece encoded by `tokenizers`, the ids joined in one Python list with BOS and EOS,
and rows of 2,048 tokens written with h5py, one gzip-4 chunk a row. Own words; see PIPELINE.md of
the reference notes for what it follows. It packs as `rows: {cerebras: {}}` does.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import ftfy
import h5py
import numpy as np
import tokenizers
import zstandard

MSL, PIECE, ROWS_PER_FILE = 2048, 2000, 4096


def texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder's jsonl.zst files in order of their names."""
    for path in sorted(folder.glob("*.jsonl.zst")):
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            for line in io.TextIOWrapper(io.BufferedReader(plain), "utf-8", newline="\n"):
                yield json.loads(line)["text"]


def pieces(text: str) -> Iterator[str]:
    """Yield a text cut before the first space at or after every 2,000 characters."""
    start = 0
    while (stop := text.find(" ", start + PIECE)) >= 0:
        yield text[start:stop]
        start = stop
    yield text[start:]


def rows(folder: Path, tokenizer: str, *, repair: bool) -> Iterator[list[list[int]]]:
    """Yield [ids, mask, labels] of each row of the joined documents; the last part is dropped."""
    encode = tokenizers.Tokenizer.from_file(tokenizer)
    bos, eos = encode.token_to_id("<s>"), encode.token_to_id("</s>")
    held: list[int] = []
    for text in texts(folder):
        if not text:
            continue
        fixed = ftfy.fix_text(text, normalization="NFC") if repair else text
        held.append(bos)
        for piece in pieces(fixed):
            held.extend(encode.encode(piece, add_special_tokens=False).ids)
        held.append(eos)
        while len(held) > MSL:
            yield [held[:MSL], [1] * MSL, held[1 : MSL + 1]]
            held = held[MSL:]


def write(path: Path, held: list[list[list[int]]]) -> None:
    """Write rows as one file."""
    with h5py.File(path, "w") as file:
        data = np.array(held, dtype=np.int32)
        file.attrs["n_examples"] = len(data)
        file.create_dataset(
            "data", data=data, chunks=(1, 3, MSL), compression="gzip", compression_opts=4
        )


def main(folder: Path, tokenizer: str, out: Path, *, repair: bool) -> int:
    """Pack a folder's documents; return how many rows there are."""
    held: list[list[list[int]]] = []
    count = 0
    for row in rows(folder, tokenizer, repair=repair):
        held.append(row)
        if len(held) == ROWS_PER_FILE:
            write(out / f"rows_{count // ROWS_PER_FILE}.h5", held)
            count, held = count + len(held), []
    if held:
        write(out / f"rows_{count // ROWS_PER_FILE}.h5", held)
    return count + len(held)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), repair="--ftfy" in sys.argv)
