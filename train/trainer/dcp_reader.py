"""Reader of torch.distributed.checkpoint's files that runs no code from them.

torch keeps a checkpoint's `.metadata` and every value that is no tensor as pickles, and executes
them. Here a pickle may name the few classes that metadata is made of and nothing else, and values
pass torch's own `weights_only` reader first. Files that metadata names must stand in the folder.
"""

import pickle
from collections.abc import Collection
from importlib import import_module
from io import BytesIO
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from crystalmix.prep.objects.waiting import bring
from crystalmix.prep.runtime.atomic_files import regular_bytes
from crystalmix.prep.runtime.errors import DamageError

METADATA = ".metadata"
MODULE = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    "pathlib": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    MODULE: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
MOVED = {"pathlib._local": "pathlib"}  # where Python 3.13 has its classes


class SafeReader(FileSystemReader):
    """Reads the files of a checkpoint; files: the names that its state lists."""

    def __init__(self, path: Path, files: Collection[str]) -> None:
        super().__init__(path)
        self.folder, self.files = path, files
        for name in files:
            bring(path / name)

    def read_metadata(self, *_: object, **__: object) -> Metadata:
        """Read what stands where in the files; DamageError for a pickle of anything else."""
        path = self.folder / METADATA
        try:
            metadata = _Unpickler(BytesIO(regular_bytes(path, "take another checkpoint"))).load()
            stored = {str(info.relative_path) for info in metadata.storage_data.values()}
        except (pickle.UnpicklingError, ImportError, *BROKEN) as error:
            raise _damaged(path, str(error) or type(error).__name__) from None
        if strange := sorted(stored.difference(self.files)):
            raise _damaged(path, f"it names {strange[0]}, which is no file of the checkpoint")
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """Takes numbers, texts and lists beside the tensors, and no other object."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Check a pickled value with torch's restricted reader, then put it where it belongs."""
        try:
            torch.load(value, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, *BROKEN) as error:
            name = read_item.dest_index.fqn
            raise _damaged(Path(name), str(error).splitlines()[0]) from None
        value.seek(0)
        super().load_bytes(read_item, value)


BROKEN = (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError, MemoryError)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> object:
        """Return a class that metadata is made of; UnpicklingError for any other global."""
        module_name = MOVED.get(module_name, module_name)
        named = getattr(torch, global_name, None) if module_name == "torch" else None
        is_plain = isinstance(named, torch.dtype | torch.layout)
        if not (is_plain or global_name in ALLOWED.get(module_name, ())):
            raise pickle.UnpicklingError(
                f"it would run {module_name}.{global_name}, which no checkpoint needs"
            )
        return getattr(import_module(module_name), global_name)


def _damaged(path: Path, reason: str) -> DamageError:
    return DamageError(f"{path}: is not read ({reason}); remove this checkpoint or restore it")
