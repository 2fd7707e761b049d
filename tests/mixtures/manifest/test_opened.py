"""Manifests and folders of rows opened by tables: the same as read, and never against them."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import opened, rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import DamageError
from helpers.runs import small_build


@pytest.fixture
def build(tmp_path: Path) -> BuildFolder:
    """Return a copy of the small build, whose files are older than its tables."""
    copytree(small_build(), tmp_path / "build", symlinks=True)
    for path in (tmp_path / "build").rglob("*.json"):
        if "lookup" not in path.parts:
            os.utime(path, (1e9, 1e9))
    return BuildFolder(tmp_path / "build")


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the manifests and receipts that are read whole."""
    found: list[Path] = []

    def counted(read: Callable[[Path], Any], path: Path) -> Any:
        found.append(path)
        return read(path)

    for module in (manifests, receipts):
        read: Any = module.read
        monkeypatch.setattr(module, "read", lambda path, read=read: counted(read, path))
    return found


def folders(build: BuildFolder) -> list[Path]:
    return sorted(build.path.glob("domains/*/*"))


def tables(build: BuildFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (build.lookup / "shards").iterdir()}


def test_an_opened_manifest_is_the_one_that_is_read(build: BuildFolder, whole: list[Path]) -> None:
    for path in build.manifests():
        here = opened.manifest(path)
        assert whole == []
        true = manifests.read(path)
        places = [(here.paths[i], true.paths[i]) for i in range(len(true.paths))]
        assert all(one == other for one, other in places)
        assert len(here.paths) == len(true.paths)
        for step in (0, true.steps - 1):
            for name, column in vars(true.step(step)).items():
                assert np.array_equal(column, getattr(here.step(step), name))
        for shard in (true.paths[0], true.paths[-1]):
            assert here.positions(shard, 0) == true.positions(shard, 0)
        assert whole == [path]
        assert here == true
        assert here.content() == true.content()
        assert whole == [path, path]
        whole.clear()


def test_an_opened_folder_has_the_shards_of_its_receipt(
    build: BuildFolder, whole: list[Path]
) -> None:
    for folder in folders(build):
        here = opened.rows(folder)
        assert whole == []
        true = opened.OpenedRows.of(receipts.read(folder))
        whole.clear()
        assert here == true


def test_a_build_without_tables_is_read_whole_once(build: BuildFolder, whole: list[Path]) -> None:
    kept = tables(build)
    rmtree(build.lookup)
    assert verify(build.path) == []
    for _ in range(2):
        whole.clear()
        for path in build.manifests():
            opened.manifest(path)
        for folder in folders(build):
            opened.rows(folder)
    assert whole == []
    assert tables(build) == kept


def test_where_tables_cannot_be_written_all_is_read(build: BuildFolder, whole: list[Path]) -> None:
    rmtree(build.lookup)
    build.lookup.write_bytes(b"")  # nothing can be made below it, as on a read-only disk
    [path, *_] = build.manifests()
    assert [opened.manifest(path).digest for _ in range(2)] == [manifests.read(path).digest] * 2
    assert whole == [path] * 3


@pytest.mark.parametrize("later", [True, False])
def test_an_edited_file_is_refused_and_never_answered_by_its_table(
    build: BuildFolder, later: bool
) -> None:
    [path, *_] = build.manifests()
    data = path.read_bytes().replace(b'"rows": ', b'"rows": 1', 1)  # of another size
    path.write_bytes(data)
    if not later:
        os.utime(path, (1e9, 1e9))
    with pytest.raises(DamageError, match="was edited"):
        opened.manifest(path)


def test_an_edit_of_the_same_size_is_seen_by_the_files_age(build: BuildFolder) -> None:
    [folder, *_] = folders(build)
    path = folder / receipts.NAME
    data = path.read_bytes().replace(b'"stage": "', b'"stage": "x', 1).replace(b'",\n', b"',\n", 1)
    path.write_bytes(data[: path.stat().st_size])
    with pytest.raises(DamageError):
        opened.rows(folder)


def test_a_file_that_was_copied_later_is_looked_at_once(
    build: BuildFolder, monkeypatch: pytest.MonkeyPatch, whole: list[Path]
) -> None:
    [path, *_] = build.manifests()
    os.utime(path)
    hashed: list[Path] = []
    digest: Any = receipts.file_digest
    monkeypatch.setattr(receipts, "file_digest", lambda p: (hashed.append(p), digest(p))[1])
    assert opened.manifest(path).phase == path.parent.name
    assert (hashed, whole) == ([path], [])
    os.utime(path, (2e9, 2e9))  # of a clock that is ahead: looked at each time
    for _ in range(2):
        opened.manifest(path)
    assert len(hashed) == 3


def test_another_manifest_in_its_place_has_its_own_table(build: BuildFolder) -> None:
    [path, *_] = build.manifests()
    old = manifests.read(path)
    manifests.write(path, manifests.resealed(old, steps=old.steps - 1))
    os.utime(path, (1e9, 1e9))
    assert opened.manifest(path).steps == opened.manifest(path).steps == old.steps - 1
    count = len(tables(build))
    opened.make(build)
    assert len(tables(build)) == count - 1


def resealed(data: bytes, **changes: object) -> bytes:
    """Return a table that was changed, with a digest that says that it was not."""
    table = {**orjson.loads(data), **changes}
    del table["sha256"]
    table["sha256"] = opened.sha256(opened._dumped(table)).hexdigest()
    return opened._dumped(table)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_table_that_says_something_else_is_a_fault(build: BuildFolder, sealed: bool) -> None:
    for path, data in tables(build).items():
        changed = data.replace(b".h5", b".h6", 1)
        path.write_bytes(resealed(changed) if sealed else changed)
        faults = verify(build.path)
        assert [str(path) in line for line in faults] == [True]
        path.write_bytes(data)


SPOILT: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: resealed(data, version=opened.VERSION - 1),
    lambda data: resealed(data, of={**orjson.loads(data)["of"], "digest": "0" * 64}),
]


@pytest.mark.parametrize("spoil", SPOILT, ids=["torn", "of another version", "of another file"])
def test_a_spoilt_table_is_made_again(
    build: BuildFolder, whole: list[Path], spoil: Callable[[bytes], bytes]
) -> None:
    kept = tables(build)
    for path, data in kept.items():
        path.write_bytes(spoil(data))
    for path in build.manifests():
        opened.manifest(path)
    for folder in folders(build):
        opened.rows(folder)
    assert len(whole) == len(kept)
    assert tables(build) == kept


def test_receipts_digests_stand_in_their_heads(build: BuildFolder, tmp_path: Path) -> None:
    for folder in folders(build):
        assert receipts.own_digest(folder / receipts.NAME) == receipts.read(folder).digest
    many = {"account": {f"{n:04d}": {"digest": "0" * 64} for n in range(100)}, "digest": "1" * 64}
    (tmp_path / "one.json").write_bytes(canonical(many))
    assert receipts.own_digest(tmp_path / "one.json") == "1" * 64
    (tmp_path / "one.json").write_bytes(canonical({"account": " " * (1 << 16), **many}))
    assert receipts.own_digest(tmp_path / "one.json") == "1" * 64


def test_what_steps_give_of_each_part_reads_no_shard(build: BuildFolder, whole: list[Path]) -> None:
    for path in build.manifests():
        phase, last = path.parent.name, manifests.read(path).steps - 1
        true = rows_of_steps.part_counts(manifests.read(path), 0, last)
        whole.clear()
        for _ in range(2):
            counts, _ = rows_of_steps.look(build.path, f"{phase}:0:{last}")
            assert counts == true
        assert whole == []
