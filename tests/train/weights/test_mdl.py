"""Cerebras' checkpoints without Cerebras: what is written comes back, from theirs and from ours."""

import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crystalmix.prep.runtime.errors import DamageError, InputError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.weights import mdl
from helpers.zoos import with_cerebras

DTYPES = list(mdl.RTFX)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.builds(
        lambda size, dtype: torch.arange(size).to(dtype), st.integers(0, 5), st.sampled_from(DTYPES)
    ),
)
KEYS = st.one_of(st.text("abc_", min_size=1, max_size=4), st.integers(0, 9))
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(KEYS, inner, max_size=3),
        ),
        max_leaves=8,
    ),
    max_size=4,
)
TREE: Json = {
    "model": {"w.weight": torch.arange(12.0).reshape(3, 4), "half": torch.tensor([1.5, -2.0])},
    "optimizer": {
        "state": {0: {"exp_avg": torch.ones(3, 4), "beta1_power": torch.tensor(0.9)}},
        "param_groups": [{"betas": (0.9, 0.95), "params": [0], "lr": torch.tensor(0.1)}],
    },
    "global_step": 7,
    "dataloader": {"samples_streamed": 42, "seed": None, "dataset": {"mixture": [], "name": "ü"}},
    "empty": {},
    "none": torch.empty(0, dtype=torch.int64),
}
TREE["model"]["half"] = TREE["model"]["half"].to(torch.bfloat16)
TREE["model"]["alias"] = TREE["model"]["w.weight"]


def equal(one: Any, other: Any) -> bool:
    """Tell whether two trees are the same in types, keys, order, and bits."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def read(path: Path) -> Any:
    with mdl.opened(path) as file:
        return file.tree()


def unambiguous(tree: Any) -> bool:
    """Tell whether every value has a name of its own, as names joined by dots must be."""
    names = [name for name, _ in mdl.flatten(tree)]
    return len(names) == len(set(names))


@given(tree=TREES.filter(unambiguous))
@settings(max_examples=40, deadline=None)
def test_any_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("any") / "x.mdl"
    mdl.write(path, tree)
    assert equal(read(path), tree)


def test_a_checkpoint_is_laid_out_as_theirs(tmp_path: Path) -> None:
    path = tmp_path / "x.mdl"
    mdl.write(path, TREE)
    found = read(path)
    assert equal(found, TREE)
    assert found["model"]["alias"] is found["model"]["w.weight"]
    with h5py.File(path) as file:
        assert "model.alias" not in file  # a tensor is written once
        half = file["model.half"]
        assert half.dtype == np.int16
        assert half[...].tolist() == [0x3FC0, 0xC000 - 0x10000]
        assert list(half.attrs["dtypes"]) == ["torch.bfloat16"]
        assert half._filters == {"32004": (0,)}
        assert file["optimizer.state.0.beta1_power"].shape == ()
        assert file.attrs["__version__"] == 0.5
    with mdl.opened(path) as file:
        assert file.below("model") == {
            name: f"model.{name}" for name in ("w.weight", "half", "alias")
        }
        with pytest.raises(DamageError, match="global_step is no tensor, but 7"):
            file.tensor("global_step")
        with pytest.raises(DamageError, match="nothing is missing"):
            file.value("nothing")


def test_what_an_mdl_can_not_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for value, told in ((object(), "no object"), (torch.ones(1, dtype=torch.complex64), "complex")):
        with pytest.raises(ValueError, match=f"a: an .mdl holds .*{told}"):
            mdl.write(tmp_path / "x.mdl", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.mdl"
    with pytest.raises(InputError, match="x.mdl: no such checkpoint"), mdl.opened(path):
        pass
    path.write_bytes(b"PK not HDF5")
    with pytest.raises(DamageError, match=r"is no .mdl \(HDF5\) file"), mdl.opened(path):
        pass
    mdl.write(path, TREE)
    whole = path.read_bytes()
    for change, told in (
        (lambda file: file.attrs.pop("__SUCCESS__"), "was not written to its end"),
        (lambda file: file.attrs.update({"__spec__": "{}"}), "its __spec__ can't be read"),
        (lambda file: file.attrs.update({"__spec__": '["", "[1, {\\"type\\": \\"set\\", '
         '\\"context\\": null, \\"children_spec\\": []}]"]'}), "it nests set"),
        (lambda file: file.pop("model.half"), "model.half is missing"),
    ):  # fmt: skip
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(DamageError, match=told), mdl.opened(path) as found:
            found.tree()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((DamageError, OSError)), mdl.opened(path) as found:
        found.tree()


def test_without_hdf5plugin_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UsageError, match="needs hdf5plugin; install crystalmix with its extra"):
        mdl.write(tmp_path / "x.mdl", {})


class Bomb:
    """Something whose pickle does harm when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


def old_file(path: Path, version: float | None) -> None:
    """Write a checkpoint as releases before 2.2 did: types at the datasets, the tree pickled."""
    with h5py.File(path, "w") as file:
        file.attrs["__spec__"] = pickle.dumps(Bomb()).hex()
        if version is not None:
            file.attrs["__version__"] = version
        weight = np.arange(6, dtype=np.float32).reshape(2, 3)
        kind = "NumpyArrayH5Type" if version == 0.3 else "TorchTensorH5Type"
        one = file.create_dataset("model.w%2Fx.weight", data=weight, **hdf5plugin.LZ4())
        half = file.create_dataset("model.half", data=np.array([0x3FC0], np.int16))
        half.attrs["is_bfloat16"] = True
        step = file.create_dataset("global_step", data=7)
        name = file.create_dataset("name", data=h5py.Empty("f"))
        none = file.create_dataset("none", data=h5py.Empty("f"))
        full = file.create_dataset("full", data=np.empty(0, np.float32))
        full.attrs.update({"shape": [2, 2], "fill_value": np.float32(0.5), "is_bfloat16": False})
        link = file.create_dataset("link", data=h5py.Empty("f"))
        if version is None:  # 1.7 knew no types
            step.attrs["is_scalar"] = True
            name.attrs.update({"is_string": True, "string_val": "text"})
            none.attrs["is_none"] = True
            full.attrs["is_constructible"] = True
            del file["link"]
            return
        one.attrs["__H5_TYPE__"] = half.attrs["__H5_TYPE__"] = kind
        step.attrs["__H5_TYPE__"] = "ScalarH5Type"
        name.attrs.update({"__H5_TYPE__": "StringH5Type", "string_value": "text"})
        none.attrs["__H5_TYPE__"] = "NoneH5Type"
        full.attrs["__H5_TYPE__"] = "FullTensorH5Type"
        link.attrs.update({"__H5_TYPE__": "DeferredH5Tensor", "link_to_self": True})
        link.attrs["key"] = "model.half"


@pytest.mark.parametrize("version", [None, 0.2, 0.3, 0.4])
def test_checkpoints_of_old_releases_are_read_without_their_pickles(
    tmp_path: Path, version: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old_file(tmp_path / "old.mdl", version)
    found = read(tmp_path / "old.mdl")
    assert not (tmp_path / "harm").exists()
    half = torch.tensor([1.5], dtype=torch.bfloat16)
    wanted: Json = {
        "full": torch.full((2, 2), 0.5),
        "global_step": 7,
        "link": half,
        "model.half": half,
        "model.w/x.weight": torch.arange(6.0).reshape(2, 3),
        "name": "text",
        "none": None,
    }
    if version is None:
        del wanted["link"]
    assert equal(found, wanted)


def test_a_type_that_only_they_can_read_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.mdl", "w") as file:
        file.attrs["__version__"] = 0.4
        file.create_dataset("x", data=1).attrs["__H5_TYPE__"] = "ObjectH5Type"
    with pytest.raises(DamageError, match="x is a ObjectH5Type, which holds no numbers of its own"):
        read(tmp_path / "old.mdl")


MAKE = """
import sys, torch
import cerebras.pytorch as cstorch
from cerebras.pytorch.storage.serializers import DeferredFullTensor
import numpy as np
backend = cstorch.backend("CPU")
w = torch.arange(12.0).reshape(3, 4)
tree = {"model": {"w.weight": w, "half": torch.tensor([1.5, -2.0]).to(torch.bfloat16), "alias": w},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 4), "beta1_power": torch.tensor(0.9)}},
                      "param_groups": [{"betas": (0.9, 0.95), "params": [0],
                                        "lr": torch.tensor(.1)}]},
        "global_step": 7,
        "dataloader": {"samples_streamed": 42, "seed": None,
                       "dataset": {"mixture": [], "name": "ü"}},
        "empty": {}, "none": torch.empty(0, dtype=torch.int64)}
cstorch.save(tree, sys.argv[1])
cstorch.save({"full": DeferredFullTensor(torch.Size([2]), torch.float32, 0.5), "np": np.arange(3),
              "object": int}, sys.argv[2])
loaded = cstorch.load(sys.argv[3])
flat = lambda t: torch.utils._pytree.tree_flatten(t)
(one, s1), (two, s2) = flat(tree), flat(loaded)
assert s1 == s2, (s1, s2)
for a, b in zip(one, two):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b.to("cpu") * 1), (a, b)
    else:
        assert type(a) is type(b) and a == b
print("same")
"""


def test_theirs_is_read_as_they_wrote_it_and_ours_is_read_by_them(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("theirs.mdl", "other.mdl", "ours.mdl")]
    mdl.write(paths[2], TREE)
    assert with_cerebras(MAKE, *paths).strip() == "same"
    found = read(paths[0])
    assert equal(found, TREE)
    assert found["model"]["alias"] is found["model"]["w.weight"]
    with mdl.opened(paths[1]) as other:
        assert torch.equal(other.tensor("full"), torch.full((2,), 0.5))
        assert torch.equal(other.tensor("np"), torch.arange(3))
        with pytest.raises(DamageError, match="object is a ObjectSerializer"):
            other.value("object")
    with h5py.File(paths[0]) as theirs, h5py.File(paths[2]) as ours:
        assert {*theirs} == {*ours}
        assert {*theirs.attrs} == {*ours.attrs}
        for name in theirs:
            assert {*theirs[name].attrs} == {*ours[name].attrs}, name
            assert theirs[name]._filters == ours[name]._filters, name
