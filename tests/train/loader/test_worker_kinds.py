"""A DataLoader's ways to start workers, keep them and pin memory: the same samples by each."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import crystalmix as cm
from helpers.runs import small_build

STEPS = 10
Seen = list[tuple[int, bytes]]


def phase() -> cm.Phase:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    return build.phases["code"]


def planned(first: int = 0) -> Seen:
    return [(batch.step, batch.ids.tobytes()) for batch in phase().batches(first)]


def seen(loader: DataLoader[object]) -> Seen:
    return [(int(s["step"]), s["ids"].numpy().tobytes()) for s in loader]  # pyright: ignore


@pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver"])
def test_workers_that_are_kept_give_every_epoch_alike_however_they_are_started(kind: str) -> None:
    """The parent has read rows before: what it has open must not harm those that it forks."""
    dataset = phase().dataset(start=2)
    next(iter(dataset))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(pin_memory|fork).*")
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=2,
            multiprocessing_context=kind,
            persistent_workers=True,
            pin_memory=True,
        )
        for _ in range(2):
            assert seen(loader) == planned(2)


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_rows_by_number_are_the_same_from_workers_of_any_kind(kind: str) -> None:
    rows = phase().row_dataset()
    batch = len(rows) // STEPS
    loader = DataLoader(rows, batch_size=batch, num_workers=2, multiprocessing_context=kind)
    assert [sample["ids"].numpy().tobytes() for sample in loader] == [ids for _, ids in planned()]


def test_numpy_batches_and_a_ledger_come_where_torch_can_not_be_imported(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["torch"] = None  # an import of it fails
import crystalmix as cm
phase = cm.open(sys.argv[1]).phases["code"]
with cm.Ledger(sys.argv[2], phase) as ledger:
    for batch in phase.batches():
        ledger.feed(batch)
        ledger.record(batch.step)
    ledger.seal()
"""
    words = [sys.executable, "-c", script, str(small_build()), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert cm.verify(small_build(), run=tmp_path).faults == ()
