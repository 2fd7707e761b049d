"""Rows as columns: Parquet files, and Arrow files in the layout of `datasets.load_from_disk`.

Columns: `input_ids`, `labels` (int32) and `loss_mask` (uint8), lists of msl; and where each row is
from: `step`, `slot`, `part`, `epoch`, `shard`, `row`, `documents`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.exports.row_blocks import DOCUMENTS, Block
from crystalmix.prep.runtime.atomic_files import canonical, replacing, write_atomic

REFERENCES = pa.schema(
    [
        ("step", pa.int64()),
        ("slot", pa.int32()),
        ("part", pa.string()),
        ("epoch", pa.int32()),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("documents", DOCUMENTS),
    ]
)


def schema(msl: int) -> pa.Schema:
    """Return the columns of rows of a length."""
    fields = [("input_ids", pa.int32()), ("labels", pa.int32()), ("loss_mask", pa.uint8())]
    return pa.schema([*(pa.field(n, pa.list_(kind, msl)) for n, kind in fields), *REFERENCES])


def write_parquet(path: Path, blocks: Iterable[Block], msl: int) -> Iterator[Block]:
    """Write rows to a Parquet file while blocks pass through."""
    columns = schema(msl)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, columns, compression="zstd", version="2.6") as file,
    ):
        for block in blocks:
            file.write_batch(batch(block))
            yield block


def write_references(path: Path, blocks: Iterable[Block]) -> Iterator[Block]:
    """Write where rows are from to a Parquet file, beside tokens alone."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, REFERENCES, compression="zstd", version="2.6") as file,
    ):
        for block in blocks:
            file.write_batch(pa.record_batch(block.references(), schema=REFERENCES))
            yield block


def write_arrow(path: Path, blocks: Iterable[Block], msl: int) -> Iterator[Block]:
    """Write rows to an Arrow file (a stream of batches) while blocks pass through."""
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        pa.ipc.new_stream(file, schema(msl)) as stream,
    ):
        for block in blocks:
            stream.write_batch(batch(block))
            yield block


def batch(block: Block) -> pa.RecordBatch:
    """Return a block as a batch of columns."""
    msl = block.rows.shape[2]
    ids, mask, labels = (block.rows[:, channel].reshape(-1) for channel in range(3))
    lists = {
        "input_ids": pa.array(ids),
        "labels": pa.array(labels),
        "loss_mask": pa.array((mask != 0).astype(np.uint8)),
    }
    columns = {n: pa.FixedSizeListArray.from_arrays(x, msl) for n, x in lists.items()}
    return pa.record_batch({**columns, **block.references()}, schema=schema(msl))


def write_dataset_files(folder: Path, files: Sequence[Path], fingerprint: str) -> None:
    """Write what `datasets.load_from_disk` reads beside the Arrow files."""
    state = {
        "_data_files": [{"filename": file.name} for file in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_atomic(folder / "state.json", canonical(state))
    write_atomic(folder / "dataset_info.json", canonical({}))
