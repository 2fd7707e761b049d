"""The loop that the documentation shows, run as it stands there: ten lines, killed, proven."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import crystalmix as cm
from crystalmix.prep.runtime.errors import UsageError
from helpers import documented
from helpers.kills import PATIENCE_SECONDS, start
from helpers.runs import recorded, small_build, undisturbed


def as_documented(folder: Path, stop: int | None) -> None:
    """Run the lines of docs/other-trainers.md in a folder, on the small build's phase `code`."""
    os.chdir(folder)
    code = documented.block("other-trainers.md", "num_workers=2")
    assert len(documented.ours(code)) <= documented.MOST
    code = code.replace('"phase1"', '"code"').replace("% 1000", "% 2")
    done: list[int] = []

    def load(checkpoint: Path | None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Embedding(424, 4)
        if checkpoint is not None:
            model.load_state_dict(torch.load(checkpoint))
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    def step(
        model: nn.Module, optimizer: torch.optim.Optimizer, sample: dict[str, Tensor]
    ) -> Tensor:
        if len(done) == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(int(sample["step"]))
        loss = model(sample["ids"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def save(model: nn.Module, _: torch.optim.Optimizer) -> Path:
        place = folder / f"model-{len(list(folder.glob('model-*')))}.pt"
        torch.save(model.state_dict(), place)
        return place

    exec(code, {"load": load, "step": step, "save": save, "DataLoader": DataLoader})


def test_the_documented_loop_is_killed_goes_on_and_is_proven(tmp_path: Path) -> None:
    (tmp_path / "build").symlink_to(small_build())
    process = start(as_documented, tmp_path, 5)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    run = tmp_path / "out" / "run"
    with cm.Ledger(run, cm.open(small_build()).phases["code"]) as ledger:
        assert ledger.next_step == 4
    process = start(as_documented, tmp_path, None)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0
    assert cm.verify(small_build(), run=run).faults == ()
    assert recorded(run, "code")[1] == recorded(undisturbed(), "code")[1]


def test_hugging_face_s_trainer_needs_no_more_lines() -> None:
    """What they do is run by examples/trainers/hf_trainer.py, in `make peers`."""
    shown = documented.ours(documented.block("other-trainers.md", "class Rows"))
    assert len(shown) + len(("import", "phase", "ledger")) <= documented.MOST
    example = (documented.DOCS.parent / "examples" / "trainers" / "hf_trainer.py").read_text()
    calls = ("ledger.feed(inputs)", "ledger.record(state.global_step - 1)", "ledger.seal(")
    for call in calls:
        assert any(call in line for line in shown)
        assert call in example


def test_a_ledger_that_is_open_here_is_said_to_be_and_one_that_is_gone_lets_go(
    tmp_path: Path,
) -> None:
    phase = cm.open(small_build()).phases["code"]
    ledger = cm.Ledger(tmp_path, phase)
    with pytest.raises(UsageError, match="is open in this process already; close that ledger"):
        cm.Ledger(tmp_path, phase)
    del ledger
    gc.collect()
    cm.Ledger(tmp_path, phase).close()
