"""HDF5 files of rows with any number of features, `data` of (rows, features, msl) int32.

Written as shards are: one chunk a row, deflated here, attribute `n_examples`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.runtime.atomic_files import replacing

LEVEL = 1


@contextmanager
def writing(
    path: Path, rows: int, features: int, msl: int
) -> Generator[Callable[[NDArray[np.int32]], None]]:
    """Open a file of `rows` rows; what is given takes one row, (features, msl), after the other."""
    shape, chunk = (rows, features, msl), (1, features, msl)
    how = {"dtype": "<i4", "compression": "gzip", "compression_opts": LEVEL}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        data: Any = file.create_dataset("data", shape=shape, chunks=chunk, **how)
        file.attrs["n_examples"] = rows
        written = 0

        def put(row: NDArray[np.int32]) -> None:
            nonlocal written
            plain = np.ascontiguousarray(row, "<i4").data.cast("B")
            packed = deflate.zlib_compress(plain, LEVEL)
            data.id.write_direct_chunk((written, 0, 0), packed, filter_mask=0)
            written += 1

        yield put
