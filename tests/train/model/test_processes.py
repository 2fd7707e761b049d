"""The world: any number of processes records the same, goes on from the same, and fails as one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from crystalmix.prep.runtime.errors import DamageError, RefusalError, UsageError
from crystalmix.train.model import processes
from crystalmix.train.model.processes import World
from crystalmix.train.record.run_folder import latest, step_of
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer.claim import check_fit
from helpers.kills import train, train_until_path
from helpers.runs import (
    copied_build,
    leftovers,
    manifest,
    recorded,
    run_file,
    same_run,
    scratch,
    small_build,
    undisturbed,
    weights,
    write_run,
)
from helpers.runs import train as train_alone
from helpers.worlds import SHARED_WORK, begin, end, in_buckets, job, run_of, train_together

CLOSE = 1e-6
ROOT = Path(__file__).parents[3]


@lru_cache
def by_two(parallel: str) -> Path:
    """A run of the phase `prose` by two processes that nothing stopped."""
    out = scratch() / parallel
    train_together(2, job(out, run_of(parallel)))
    return out


def assert_same_ledger(one: Path, other: Path, close: float = CLOSE) -> None:
    """Rows, digests, chain and parts are equal, losses and norms equal but for rounding."""
    (ours, our_rows), (theirs, their_rows) = (recorded(out, "prose") for out in (one, other))
    assert our_rows == their_rows
    for mine, wanted in zip(ours, theirs, strict=True):
        for key in ("step", "digest", "chain", "learning_rate"):
            assert mine[key] == wanted[key]
        assert mine["loss"] == pytest.approx(wanted["loss"], abs=close)
        assert mine["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=100 * close)
        for part, same in zip(mine["parts"], wanted["parts"], strict=True):
            assert [part[key] for key in ("part", "rows", "tokens")] == [
                same[key] for key in ("part", "rows", "tokens")
            ]
            assert part["loss"] == pytest.approx(same["loss"], abs=close)


@pytest.mark.parametrize("parallel", SHARED_WORK)
def test_two_processes_record_what_one_records(parallel: str) -> None:
    assert_same_ledger(by_two(parallel), undisturbed())
    assert findings(small_build(), by_two(parallel), batches=True) == []
    assert leftovers(by_two(parallel)) == []


@pytest.mark.parametrize("parallel", SHARED_WORK)
def test_two_processes_stopped_and_resumed_are_bit_for_bit_two_that_were_not(
    parallel: str, tmp_path: Path
) -> None:
    train_together(2, job(tmp_path, run_of(parallel), stop=5))
    train_together(2, job(tmp_path, run_of(parallel)))
    assert same_run(tmp_path, by_two(parallel), "prose")


@pytest.mark.parametrize(
    ("parallel", "first", "then"), [("ddp", 2, 1), ("fsdp", 2, 1), ("fsdp", 1, 2)]
)
def test_another_number_of_processes_goes_on(
    parallel: str, first: int, then: int, tmp_path: Path
) -> None:
    for size, stop in ((first, 7), (then, None)):
        train_together(size, job(tmp_path, run_of(parallel), stop=stop))
    assert_same_ledger(tmp_path, undisturbed())
    assert (
        recorded(tmp_path, "prose")[0][:7]
        == (recorded(undisturbed() if first == 1 else by_two(parallel), "prose")[0][:7])
    )
    assert findings(small_build(), tmp_path, batches=True) == []


def test_four_processes_with_micro_batches_resume_bit_for_bit_too(tmp_path: Path) -> None:
    """More than two summands: their order shows."""
    run = run_of("ddp", async_checkpoints=True)
    train_together(4, job(tmp_path / "whole", run, stop=6))
    for stop in (2, 6):
        train_together(4, job(tmp_path / "parts", run, stop=stop))
    one, other = (recorded(tmp_path / name, "prose") for name in ("whole", "parts"))
    assert one == other


def test_gradients_are_added_up_once_in_however_many_buckets(tmp_path: Path) -> None:
    assert end(begin(2, in_buckets, 500, job(tmp_path, run_of("ddp")))) == [0, 0]
    assert same_run(tmp_path, by_two("ddp"), "prose")


def test_checkpoints_beside_the_steps_are_those_between_them(tmp_path: Path) -> None:
    run = run_of("fsdp", async_checkpoints=True, micro_batch=2)
    train_together(2, job(tmp_path, run, stop=4))
    train_together(2, job(tmp_path, run))
    assert same_run(tmp_path, by_two("fsdp"), "prose")
    assert leftovers(tmp_path) == []


def test_a_process_that_dies_ends_the_other_and_all_go_on_later(tmp_path: Path) -> None:
    out, wanted = tmp_path / "run", job(tmp_path / "run", run_of("ddp"))
    last = (train_until_path, wanted, "os.rename", "*/checkpoints/step-*", 2)
    codes = end(begin(2, *last))
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in {0, None}
    train_together(2, wanted)
    assert same_run(out, by_two("ddp"), "prose")
    assert leftovers(out) == []


def test_a_step_without_numbers_ends_all_processes(tmp_path: Path) -> None:
    steep = {"initial_learning_rate": 1e30, "end_learning_rate": 1e30, "steps": 9}
    settings = {"parallel": "ddp", "checkpoint_steps": 1}
    path = write_run(
        tmp_path / "run.yaml", runconfig=settings, optimizer={"learning_rate": [steep]}
    )
    assert end(begin(2, train, job(tmp_path / "run", path))) == [1, 1]
    newest = latest(tmp_path / "run" / "prose" / "checkpoints")
    assert newest is not None
    assert step_of(newest) == len(recorded(tmp_path / "run", "prose")[0]) < 3


def torchrun(build: Path, out: Path, run: Path) -> subprocess.CompletedProcess[str]:
    """Start the command by torchrun in two processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "--", "crystalmix", "train", str(build), "--run", str(run), "--out", str(out)]
    return subprocess.run(
        [sys.executable, *command, "--phase", "prose"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip


def test_torchrun_starts_the_command_and_one_process_speaks(tmp_path: Path) -> None:
    done = torchrun(small_build(), tmp_path, run_of("fsdp"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"prose: from step 0 to 12 of 12, loss {recorded(tmp_path, 'prose')[0][-1]['loss']:.4f}, "
        f"weights {weights(tmp_path, 'prose')[:12]}"
    ]
    assert same_run(tmp_path, by_two("fsdp"), "prose")


def test_an_error_of_one_process_is_one_line_and_ends_all(tmp_path: Path) -> None:
    build, sealed = copied_build(tmp_path / "build"), manifest("prose")
    refs = sealed.step(0)
    alone = next(i for i in (2, 3) if refs.shard[i] not in refs.shard[:2])  # of the second alone
    path = build / sealed.paths[refs.shard[alone]]
    path.write_bytes(b"no HDF5")
    done = torchrun(build, tmp_path / "run", run_of("ddp"))
    told = [line for line in done.stderr.splitlines() if line.startswith("crystalmix: ")]
    assert done.returncode == 1
    assert len(told) == 1
    assert told[0].startswith(f"crystalmix: process 1: {path}: is not a readable shard")
    assert (
        "most recent call last" not in done.stderr.split("ChildFailedError")[0].split("api.py")[0]
    )


@pytest.mark.parametrize(
    ("changes", "processes", "kind", "wanted"),
    [
        ({}, 3, RefusalError, "its batch of 4 rows can't be shared evenly by 3 processes"),
        ({"micro_batch": 4}, 2, RefusalError, "the batch of 2 that each of 2 processes has, got 4"),
        ({"parallel": "none"}, 2, UsageError, "must be ddp or fsdp for 2 processes, got none"),
    ],
)
def test_processes_that_have_nothing_to_share_are_refused(
    changes: dict[str, object], processes: int, kind: type[Exception], wanted: str
) -> None:
    run = load(run_file())
    run = replace(run, settings=replace(run.settings, **changes))
    with pytest.raises(kind, match=wanted):
        check_fit(run, manifest("prose"), processes)


def test_slots_are_shared_out_in_order_and_once() -> None:
    slots = [slot for rank in range(4) for slot in range(12)[World(rank, 4).share(12)]]
    assert slots == list(range(12))


def test_alone_there_is_nobody_to_ask() -> None:
    world = World()
    assert world.first
    assert world.each(lambda: 3) == [3]
    assert world.total(torch.ones(2)).tolist() == [1.0, 1.0]

    def fail() -> None:
        raise DamageError("broken")

    for ask in (world.each, world.on_first, world.agree):
        with pytest.raises(DamageError, match="^broken$"):
            ask(fail)


def test_a_run_alone_may_name_a_way_to_share(tmp_path: Path) -> None:
    for parallel in SHARED_WORK:
        train_alone(tmp_path / parallel, "prose", run=run_of(parallel))
        assert same_run(tmp_path / parallel, undisturbed(), "prose")


@pytest.mark.parametrize(
    ("flags", "capability", "limit", "dtype"),
    [
        ({"avx2"}, "AVX2", None, "float32"),
        ({"avx2", "avx512f"}, "AVX512", None, "float32"),
        ({"avx512_bf16"}, "AVX512", None, "bfloat16"),
        ({"amx_bf16"}, "AVX512", "ALL", "bfloat16"),
        ({"avx512_bf16"}, "AVX512", "AVX512_CORE_BF16", "bfloat16"),
        ({"avx512_bf16"}, "AVX512", "AVX2", "float32"),
        ({"avx512_bf16"}, "AVX2", None, "float32"),
    ],
)
def test_a_processor_gets_the_dtype_that_it_multiplies_fast(
    flags: set[str],
    capability: str,
    limit: str | None,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_processor_flags", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name in processes.ONEDNN_LIMITS:
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processes.fast_dtype(processes.CPU) == dtype
