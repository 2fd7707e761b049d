"""MosaicML's MDS: `shard.00000.mds` and `index.json`, which `streaming.StreamingDataset` reads.

A shard, little-endian: number of samples and the offset of each and of the end (uint32), the
columns as JSON, the samples. A sample: the sizes of its columns of no fixed size (uint32), then
its columns, by name. Columns as in the other formats; `documents` is JSON.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson

from crystalmix.mixtures.exports.row_blocks import Block
from crystalmix.prep.runtime.atomic_files import replacing, write_atomic
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Content

NUMBERS = {"epoch": np.int32, "row": np.int32, "slot": np.int32, "step": np.int64}
TEXTS = ("documents", "part", "shard")
MOST_BYTES = 2**32 - 1  # of a shard: offsets are uint32
INDEX, VERSION = "index.json", 2


def name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard.{number:05d}.mds"


def write(path: Path, blocks: Iterable[Block], rows: int, msl: int) -> Iterator[Block]:
    """Write a shard of `rows` samples while blocks pass through; RefusalError above 4 GiB."""
    columns = json.dumps(_columns(msl), sort_keys=True).encode()
    begin = 4 * (rows + 2) + len(columns)
    offsets = [begin]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.seek(begin)
        for block in blocks:
            for sample in _samples(block):
                file.write(sample)
                offsets.append(offsets[-1] + len(sample))
            yield block
        if offsets[-1] > MOST_BYTES:
            raise RefusalError(
                f"{path}: would have {offsets[-1]:,} bytes, a shard of MDS {MOST_BYTES:,} at "
                "most; write fewer rows to a file"
            )
        file.seek(0)
        file.write(np.array([rows, *offsets], "<u4").tobytes() + columns)


def write_index(folder: Path, files: Sequence[Path], rows: Sequence[int], msl: int) -> None:
    """Write the index of a folder of shards."""
    entries = [
        {
            **_columns(msl),
            "raw_data": {"basename": file.name, "bytes": file.stat().st_size, "hashes": {}},
            "samples": count,
            "zip_data": None,
        }
        for file, count in zip(files, rows, strict=True)
    ]
    content = orjson.dumps({"shards": entries, "version": VERSION}, option=orjson.OPT_SORT_KEYS)
    write_atomic(folder / INDEX, content)


def _columns(msl: int) -> Content:
    kinds: dict[str, tuple[str, int | None]] = {
        "input_ids": (f"ndarray:int32:{msl}", 4 * msl),
        "labels": (f"ndarray:int32:{msl}", 4 * msl),
        "loss_mask": (f"ndarray:uint8:{msl}", msl),
        **{n: (np.dtype(kind).name, np.dtype(kind).itemsize) for n, kind in NUMBERS.items()},
        "documents": ("json", None),
        "part": ("str", None),
        "shard": ("str", None),
    }
    names = sorted(kinds)
    return {
        "column_names": names,
        "column_encodings": [kinds[name][0] for name in names],
        "column_sizes": [kinds[name][1] for name in names],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": VERSION,
    }


def _samples(block: Block) -> Iterator[bytes]:
    references = block.references()
    numbers = {n: references[n].to_numpy().astype(kind) for n, kind in NUMBERS.items()}
    texts = {n: references[n].to_pylist() for n in TEXTS}
    for i, row in enumerate(block.rows):
        values = {
            "input_ids": row[0].tobytes(),
            "labels": row[2].tobytes(),
            "loss_mask": (row[1] != 0).astype(np.uint8).tobytes(),
            "documents": orjson.dumps(texts["documents"][i]),
            **{n: str(texts[n][i]).encode() for n in ("part", "shard")},
            **{n: numbers[n][i].tobytes() for n in NUMBERS},
        }
        names = sorted(values)
        sizes = np.array([len(values[n]) for n in names if n in TEXTS], "<u4")
        yield sizes.tobytes() + b"".join(values[n] for n in names)
