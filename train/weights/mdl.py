"""Checkpoints of Cerebras (.mdl): read and written with h5py alone, no package of theirs.

An .mdl is HDF5, one dataset a tensor under the value's whole name, compressed by LZ4 (a filter of
hdf5plugin); bfloat16 is kept as int16. Numbers, texts and None stand in the root's attributes as
JSON, with the type of every value (format 0.5, since 2.2). Formats 0.1 to 0.4 (releases 1.7 to 2.1)
keep the type at the dataset and pickle their tree: of them the flat names are read, never a pickle.

`__spec__` says how values nest, as torch's pytree serialises it: dicts (whose keys may be numbers),
lists and tuples. torch writes it; it is read here, because torch would import what a file names.
"""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import h5py
import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError, InputError, UsageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.types import Content, Json

Tree = Any  # dicts, lists and tuples, nested, of values
Value = Tensor | int | float | bool | str | None
FORMAT = 0.5
CSTORCH = "2.10.0"  # whose files ours are like
META = ".__metadata__"
RTFX = {  # their numbers for types
    torch.bool: 1,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
    torch.float16: 10,
    torch.float32: 11,
    torch.float64: 12,
    torch.bfloat16: 15,
}
ARRAYS = {"TorchTensorH5Type", "NumpyArrayH5Type", None}
FULLS = {"FullTensorH5Type", "DeferredFullTensor"}
DICTS = {"builtins.dict", "collections.OrderedDict"}
SEQUENCES: dict[str, Callable[[Any], Any]] = {"builtins.list": list, "builtins.tuple": tuple}
Dataset = Any  # h5py has no types


class Mdl:
    """An open .mdl; tensors are read when they are asked for."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file: Any = file  # h5py has no types
        self.format = float(self.file.attrs.get("__version__", 0.1))
        self.spec: Json | None = None
        self.names: list[str] = []
        if self.format < FORMAT:
            self._keys = {unquote(name): name for name in self.file}
            self.names = sorted(self._keys)
            return
        if not self.file.attrs.get("__SUCCESS__", False):
            raise DamageError(f"{path}: was not written to its end; take another checkpoint")
        try:
            self.spec = json.loads(json.loads(self.file.attrs["__spec__"])[1])[1]
            _nested(self.spec, self.names.append)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamageError(f"{path}: its __spec__ can't be read ({error})") from None

    def below(self, prefix: str) -> dict[str, str]:
        """Return the names that begin with `prefix.`, by what follows it."""
        start = f"{prefix}."
        return {name[len(start) :]: name for name in self.names if name.startswith(start)}

    def value(self, name: str) -> Value:
        """Read a value; DamageError for one of a type that only Cerebras can read."""
        try:
            return self._old(name) if self.format < FORMAT else self._new(name)
        except KeyError as error:
            raise DamageError(f"{self.path}: {name} is missing ({error})") from None
        except OSError as error:
            if trouble := machine_error(error, self.path):
                raise trouble from None
            raise DamageError(f"{self.path}: {name} can't be read ({error})") from None

    def tensor(self, name: str) -> Tensor:
        """Read a value that must be a tensor."""
        value = self.value(name)
        if not isinstance(value, Tensor):
            raise DamageError(f"{self.path}: {name} is no tensor, but {value!r}")
        return value

    def tree(self) -> Tree:
        """Read all values, nested as they were saved; of old formats there are only names."""
        values: Content = {}
        for name in self.names:
            link = self._link(name)
            values[name] = values[link] if link in values else self.value(name)
        return values if self.spec is None else _nested(self.spec, values.__getitem__)

    def _link(self, name: str) -> str | None:
        """Return the name under which a value stands that is only linked here."""
        if self.format < FORMAT:
            return None
        meta: Json = json.loads(self.file.attrs[name + META])[name + META]
        return meta["key"] if meta["__TYPE__"] == "LinkedObject" else None

    def _new(self, name: str) -> Value:
        meta: Json = json.loads(self.file.attrs[name + META])[name + META]
        kind = meta["__TYPE__"]
        if kind == "TorchTensorSerializer":
            return _tensor(self.file[name], meta["dtypes"][0] == "torch.bfloat16")
        if kind == "NumpyArraySerializer":
            return _tensor(self.file[name], bool(meta["is_bfloat16"]))
        if kind == "LinkedObject":
            return self.value(meta["key"])
        if kind == "DeferredFullTensor":
            dtype: torch.dtype = getattr(torch, meta["dtype"].removeprefix("torch."))
            return torch.full(tuple(meta["shape"]), meta["fill_value"], dtype=dtype)
        plain = {"ScalarSerializer": "scalar_value", "StringSerializer": "string_value"}
        if kind in plain:
            return meta[plain[kind]]
        if kind == "NoneSerializer":
            return None
        raise self._unknown(name, kind)

    def _old(self, name: str) -> Value:
        data = self.file[self._keys[name]]
        attributes = data.attrs
        kind = attributes.get("__H5_TYPE__")
        if kind == "NoneH5Type" or attributes.get("is_none", False):
            return None
        if kind == "StringH5Type" or attributes.get("is_string", False):
            return str(attributes["string_value"] if kind else attributes["string_val"])
        if kind == "ScalarH5Type" or attributes.get("is_scalar", False):
            return data[...].item()
        if kind in FULLS or attributes.get("is_constructible", False):
            dtype = torch.from_numpy(np.empty(0, data.dtype)).dtype
            dtype = torch.bfloat16 if attributes.get("is_bfloat16") else dtype
            size = [int(n) for n in np.atleast_1d(attributes["shape"])]
            return torch.full(size, attributes["fill_value"].item(), dtype=dtype)
        if kind == "DeferredH5Tensor" and attributes.get("link_to_self", False):
            return self.value(unquote(attributes["key"]))
        if kind in ARRAYS and attributes.get("filepath") is None:
            return _tensor(data, bool(attributes.get("is_bfloat16", False)))
        raise self._unknown(name, str(kind))

    def _unknown(self, name: str, kind: str) -> DamageError:
        return DamageError(
            f"{self.path}: {name} is a {kind}, which holds no numbers of its own; load and save "
            "the checkpoint once with cstorch"
        )


def _nested(spec: Json | None, value: Callable[[str], object], path: Sequence[str] = ()) -> Tree:
    """Return the tree that a specification describes, of the values that its names have.

    Raises ValueError for a specification of anything but dicts, lists and tuples.
    """
    assert spec is not None
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return value(".".join(path))
    if kind not in DICTS and kind not in SEQUENCES:
        raise ValueError(f"it nests {kind}")
    keys = json.loads(spec["context"]) if kind in DICTS else range(len(children))
    items = {
        key: _nested(child, value, (*path, str(key)))
        for key, child in zip(keys, children, strict=True)
    }
    return items if kind in DICTS else SEQUENCES[kind](items.values())


def flatten(tree: Tree) -> list[tuple[str, Any]]:
    """Return each value of a tree with its name, its path joined by dots."""
    return [
        (".".join(str(getattr(step, "key", getattr(step, "idx", ""))) for step in path), value)
        for path, value in pytree.tree_flatten_with_path(tree)[0]
    ]


def _specification(tree: Tree) -> str:
    """Serialise how a tree nests as cstorch does: once to be read by people, once for torch."""
    stars = pytree.tree_map(lambda _: "*", tree)
    return json.dumps([stars, pytree.treespec_dumps(pytree.tree_structure(tree))], indent=4)


@contextmanager
def opened(path: Path) -> Generator[Mdl]:
    """Open an .mdl; InputError where there is none, DamageError where it is no HDF5."""
    _filters()
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    if not h5py.is_hdf5(path):
        raise DamageError(f"{path}: is no .mdl (HDF5) file; give a checkpoint of Cerebras")
    with h5py.File(path, "r") as file:
        yield Mdl(path, file)


def write(path: Path, tree: Tree) -> None:
    """Write a tree of tensors, numbers, texts and None as an .mdl, whole or not at all.

    A tensor that stands in several places is written once. Raises ValueError for other values.
    """
    plugin = _filters()
    written: dict[int, str] = {}
    # of 1.8 on, files find one of thousands of attributes without reading all
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=("v108", "v110")) as file:
        attributes: Any = file.attrs
        attributes["__spec__"] = _specification(tree)
        attributes["__version__"] = FORMAT
        attributes["__cstorch_version__"] = CSTORCH
        for name, value in flatten(tree):
            is_tensor = isinstance(value, Tensor)
            if is_tensor and id(value) in written:
                meta: Content = {"key": written[id(value)], "__LINKED__": True}
                meta |= {"__TYPE__": "LinkedObject", "__NONE__": True}
            elif is_tensor:
                written[id(value)] = name
                meta = _write_tensor(file, name, value, plugin)
            else:
                meta = _plain(name, value)
            attributes[name + META] = json.dumps(
                {
                    "__spec__": json.loads(_specification({name: value})),
                    "__objects__": [name],
                    name + META: meta,
                },
                indent=4,
            )
        attributes["__SUCCESS__"] = True


def _write_tensor(file: h5py.File, name: str, tensor: Tensor, plugin: ModuleType) -> Content:
    if tensor.dtype not in RTFX:
        raise ValueError(f"{name}: an .mdl holds no {tensor.dtype}")
    values = tensor.detach().cpu().contiguous()
    array = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    meta: Content = {
        "__TORCH__": True,
        "shapes": [list(tensor.shape)],
        "dtypes": [str(tensor.dtype)],
        "rtfx_dtypes": [RTFX[tensor.dtype]],
        "__TYPE__": "TorchTensorSerializer",
        "__NUMPY__": True,
        "compressed": False,
    }
    packed = plugin.LZ4() if array.shape else {}
    data = file.create_dataset(name, shape=array.shape, dtype=array.dtype, **packed)
    data[...] = array
    data.attrs.update(meta)
    return meta


def _plain(name: str, value: object) -> Content:
    if isinstance(value, bool | int | float):
        meta: Content = {"scalar_value": value, "__TYPE__": "ScalarSerializer"}
    elif isinstance(value, str):
        meta = {"string_value": value, "__TYPE__": "StringSerializer"}
    elif value is None:
        meta = {"__TYPE__": "NoneSerializer"}
    else:
        raise ValueError(f"{name}: an .mdl holds no {type(value).__name__}")
    return {**meta, "__NONE__": True}


def _tensor(data: Dataset, is_bfloat16: bool) -> Tensor:
    array = np.asarray(data[...])
    tensor = torch.from_numpy(array if array.shape else array.reshape(1)).reshape(array.shape)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _filters() -> ModuleType:
    """Return hdf5plugin, whose import makes h5py know LZ4."""
    try:
        import hdf5plugin
    except ModuleNotFoundError:
        raise UsageError(
            "an .mdl needs hdf5plugin; install crystalmix with its extra `mdl`"
        ) from None
    return hdf5plugin
