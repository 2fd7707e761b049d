"""Exports as the real libraries read them: every row, token by token, in the order of the phase."""

import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers import row_kinds
from helpers.exported import COLUMNS, documents, exported, of_part, references, rows, tokens

pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
UNUSED = {  # what `streaming` imports for pictures; on PyPI there is no build of it for CPUs alone
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
}


def without_pictures() -> Any:
    """Import mosaicml-streaming without torchvision."""
    pytest.importorskip("zstd", reason="needs `make peers`")
    for name, names in UNUSED.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for each in names:
            setattr(module, each, type(each, (), {}))
        sys.modules.setdefault(name, module)
    return pytest.importorskip("streaming", reason="needs `make peers`")


def check_sample(sample: dict[str, Any], place: int) -> None:
    for channel, name in enumerate(("input_ids", "loss_mask", "labels")):
        assert np.array_equal(np.asarray(sample[name]), rows()[place, channel])
    assert {name: sample[name] for name in COLUMNS} == references()[place]


def test_megatron_core_reads_each_row_as_a_sequence(tmp_path: Path) -> None:
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="needs `make peers`"
    )
    folder = exported(tmp_path, "megatron")
    sets = [indexed.IndexedDataset(str(p.with_suffix(""))) for p in sorted(folder.glob("*.idx"))]
    got = [dataset[i] for dataset in sets for i in range(len(dataset))]
    assert np.array_equal(np.stack(got), tokens())
    for dataset in sets:
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))


@pytest.mark.parametrize("order", ["consumption", "domain"])
def test_streaming_reads_each_row_as_a_sample(order: str, tmp_path: Path) -> None:
    streaming = without_pictures()
    folder = exported(tmp_path, "mds", order=order)
    parts = [""] if order == "consumption" else sorted({entry["part"] for entry in references()})
    for part in parts:
        places = of_part(part) if part else list(range(len(references())))
        dataset = streaming.StreamingDataset(
            local=str(folder / part), shuffle=False, batch_size=1, num_canonical_nodes=1
        )
        assert len(dataset) == len(places)
        for i, place in enumerate(places):
            check_sample(dataset[i], place)
        for place, sample in zip(places, dataset, strict=True):
            check_sample(sample, place)
            pieces = [tuple(piece.values()) for piece in sample["documents"]]
            assert pieces == documents()[place]
        streaming.base.util.clean_stale_shared_memory()


@pytest.mark.parametrize("to", ["parquet", "arrow"])
def test_datasets_reads_each_row(to: str, tmp_path: Path) -> None:
    import datasets

    folder = exported(tmp_path / "out", to)
    if to == "arrow":
        loaded: Any = datasets.load_from_disk(str(folder))
    else:
        files = [str(path) for path in sorted(folder.glob("*.parquet"))]
        cache = str(tmp_path / "cache")
        loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert len(loaded) == len(references())
    for place, sample in enumerate(loaded):
        check_sample(sample, place)
        assert [tuple(piece.values()) for piece in sample["documents"]] == documents()[place]
    assert isinstance(loaded.with_format("arrow")[:5], pa.Table)


def check_kind(kind: str, samples: Iterable[dict[str, Any]]) -> None:
    """Hold samples against what the trainer is fed of a phase, and where masked documents begin."""
    phase, batches = row_kinds.phase_of(kind), row_kinds.fed(kind)
    pieces = [each for batch in batches for each in batch.pieces or [None] * len(batch.slots)]
    parts = [part.name for part in phase.manifest.parts]
    count = 0
    for place, sample in enumerate(samples):
        for name, ours in (("input_ids", "ids"), ("labels", "labels"), ("loss_mask", "mask")):
            assert np.array_equal(np.asarray(sample[name]), row_kinds.whole(kind, ours)[place])
        if phase.manifest.masked[parts.index(sample["part"])]:
            starts = [0, *np.cumsum(pieces[place])[:-1].tolist()]
            assert starts[: len(sample["documents"])] == [d["start"] for d in sample["documents"]]
        count += 1
    assert count == len(pieces)


@pytest.mark.parametrize("kind", list(row_kinds.KINDS))
def test_streaming_reads_every_kind_of_rows(kind: str, tmp_path: Path) -> None:
    streaming = without_pictures()
    folder = row_kinds.exported(kind, "mds", tmp_path / "rows")
    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=False, batch_size=1, num_canonical_nodes=1
    )
    check_kind(kind, dataset)
    streaming.base.util.clean_stale_shared_memory()


@pytest.mark.parametrize("kind", list(row_kinds.KINDS))
def test_datasets_reads_every_kind_of_rows(kind: str, tmp_path: Path) -> None:
    import datasets

    check_kind(
        kind, datasets.load_from_disk(str(row_kinds.exported(kind, "arrow", tmp_path / "r")))
    )


@pytest.mark.parametrize("kind", [kind for kind in row_kinds.KINDS if kind != "chat"])
def test_megatron_core_reads_every_kind_of_rows_but_talks(kind: str, tmp_path: Path) -> None:
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="needs `make peers`"
    )
    files = sorted(row_kinds.exported(kind, "megatron", tmp_path / "rows").glob("*.idx"))
    sets = [indexed.IndexedDataset(str(path.with_suffix(""))) for path in files]
    got = np.stack([dataset[i] for dataset in sets for i in range(len(dataset))])
    counted = row_kinds.whole(kind, "mask") == 1
    assert np.array_equal(got[:, :-1], row_kinds.whole(kind, "ids"))
    assert np.array_equal(got[:, 1:][counted], row_kinds.whole(kind, "labels")[counted])
