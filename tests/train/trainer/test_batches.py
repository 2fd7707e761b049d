"""Batches: the rows that the manifest names, in its order, with a digest over every byte."""

from pathlib import Path
from shutil import copytree

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.open_shards import Handle, Pool
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.train.trainer.batches import Batches, digest
from helpers.runs import PHASES, manifest, small_build


def batches(phase: str, root: Path | None = None) -> Batches:
    return Batches(manifest(phase), small_build() if root is None else root)


def numbers(*channels: Tensor) -> np.ndarray:
    return np.stack([channel.numpy() for channel in channels], axis=1)


@pytest.mark.parametrize("phase", PHASES)
def test_rows_are_those_at_the_manifests_references(phase: str) -> None:
    sealed, ours = manifest(phase), batches(phase)
    assert len(ours) == sealed.steps
    for step in range(len(ours)):
        batch, refs = ours[step], sealed.step(step)
        assert batch.ids.shape == (sealed.batch, sealed.msl)
        assert {x.dtype for x in (batch.ids, batch.mask, batch.labels)} == {torch.int32}
        got = numbers(batch.ids, batch.mask, batch.labels)
        for slot in range(sealed.batch):
            with h5py.File(small_build() / sealed.paths[refs.shard[slot]]) as file:
                assert np.array_equal(got[slot], file["data"][refs.row[slot]])
        for name in ("part", "epoch", "shard", "row"):
            assert np.array_equal(getattr(batch.refs, name), getattr(refs, name))


@pytest.mark.parametrize("depth", [1, 2, 5, 99])
@pytest.mark.parametrize("start", [0, 1, 9, 11, 12])
def test_reading_ahead_equals_indexing(start: int, depth: int) -> None:
    ours = batches("prose")
    read = list(ours.ahead(range(start, len(ours)), depth))
    assert [batch.step for batch in read] == list(range(start, len(ours)))
    for batch in read:
        again = ours[batch.step]
        assert batch.digest == again.digest
        assert torch.equal(batch.ids, again.ids)
        assert torch.equal(batch.mask, again.mask)
        assert torch.equal(batch.labels, again.labels)


def test_reading_ahead_can_be_left_in_the_middle() -> None:
    for batch in batches("prose").ahead(range(12)):
        if batch.step == 3:
            break


def test_every_step_has_a_digest_of_its_own_and_always_the_same() -> None:
    ours = batches("mixed")
    digests = [ours[step].digest for step in range(len(ours))]
    assert len(set(digests)) == len(digests)
    assert [batches("mixed")[step].digest for step in range(len(ours))] == digests


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_the_digest_changes_with_any_row(channel: int, tmp_path: Path) -> None:
    root, sealed = tmp_path / "build", manifest("prose")
    copytree(small_build(), root)
    refs = sealed.step(5)
    path = root / sealed.paths[refs.shard[2]]
    rows = shards.read(path)
    rows[refs.row[2], channel, -1] += 1
    shards.write(path, len(rows), [rows])
    before, after = batches("prose"), batches("prose", root)
    changed = [step for step in range(12) if after[step].digest != before[step].digest]
    positions = sealed.positions(sealed.paths[refs.shard[2]], int(refs.row[2]))
    assert changed == sorted({position // sealed.batch for position in positions})
    assert 5 in changed


def test_a_step_opens_each_of_its_shards_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    class Counting(Pool):
        def _open(self, path: Path) -> Handle:
            opened.append(path)
            return super()._open(path)

    monkeypatch.setattr(scatter, "POOL", Counting(1))
    ours, sealed = batches("mixed"), manifest("mixed")
    for step in range(len(ours)):
        opened.clear()
        ours[step]
        assert len(opened) == len(set(opened)) <= len(set(sealed.step(step).shard.tolist()))


def test_a_missing_or_broken_shard_is_told_at_its_step(tmp_path: Path) -> None:
    root, sealed = tmp_path / "build", manifest("prose")
    copytree(small_build(), root)
    path = root / sealed.paths[sealed.step(4).shard[0]]
    path.write_bytes(b"no HDF5")
    with pytest.raises(DamageError, match=path.name):
        batches("prose", root)[4]
    path.unlink()
    with pytest.raises(DamageError, match="is missing"):
        list(batches("prose", root).ahead(range(12)))


def test_shares_of_a_batch_are_its_rows_and_make_its_digest() -> None:
    whole = batches("mixed")[3]
    shares = [Batches(manifest("mixed"), small_build(), slice(i, i + 2))[3] for i in (0, 2)]
    assert torch.equal(torch.cat([share.ids for share in shares]), whole.ids)
    assert digest(share.digests for share in shares) == whole.digest
    assert np.concatenate([share.tokens for share in shares]).tolist() == whole.mask.sum(1).tolist()
    assert all(np.array_equal(share.refs.row, whole.refs.row) for share in shares)


@pytest.mark.parametrize("threads", [1, 3])
def test_only_the_steps_asked_are_read_in_their_order(threads: int) -> None:
    steps = [1, 4, 5, 11]
    read = batches("prose").ahead(steps, 2, threads)
    assert [batch.step for batch in read] == steps
