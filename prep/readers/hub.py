"""Hub datasets: what `datasets` loads, streamed shard by shard as Arrow tables.

The readers of `datasets` take some truncated files for whole (a `.zst` cut at the end of a line):
`files: [hf://datasets/owner/name/...]` reads the same files by readers that do not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from crystalmix.prep.readers.batch import BATCH_ROWS
from crystalmix.prep.readers.files import url_of
from crystalmix.prep.runtime.errors import BrokenFile, InputError
from crystalmix.prep.runtime.machine import machine_error


def load(
    source: str, root: Path, name: str, config: str | None, split: str, files: tuple[str, ...]
) -> Any:  # noqa: ANN401  datasets ships no types
    """Load a dataset for streaming: a hub id, a folder below the root, or a builder with files."""
    import datasets

    loader: Any = datasets.load_dataset
    local = root / name
    try:
        return loader(
            str(local) if local.is_dir() else name,
            name=config,
            split=split,
            data_files=[url_of(root, file) or str(root / file) for file in files] or None,
            streaming=True,
        )
    except Exception as error:  # noqa: BLE001  datasets and the hub client raise many kinds
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"source {source}: dataset {name!r} can't be loaded ({brief}); "
            "check the id, the split and the network"
        ) from None


def tables(dataset: Any, number: int, place: str) -> Iterator[pa.Table]:  # noqa: ANN401
    """Yield one shard's rows; BrokenFile where they can't be read to their end."""
    part = dataset.shard(num_shards=dataset.num_shards, index=number).with_format("arrow")
    try:
        yield from part.iter(batch_size=BATCH_ROWS)
    except Exception as error:
        if not isinstance(error, (pa.ArrowException, OSError, ValueError, EOFError, RuntimeError)):
            raise
        if trouble := machine_error(error, place):
            raise trouble from None
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenFile(
            f"{place}: can't be read to its end ({brief}); fetch it again", "corrupt"
        ) from None
