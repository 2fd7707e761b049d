"""Our rows and our proof in others' trainers: each is killed, goes on, and is held to the plan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crystalmix as cm
from helpers import killed_script
from helpers.runs import recorded, small_build, undisturbed

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")
LAST, STEPS = 6, 10


def run(script: str, out: Path, *, dies: bool = False, ranks: int = 1) -> int:
    """Run an example on the small build's phase `code`; dies: after its seventh step."""
    words = [str(EXAMPLES / script), str(small_build()), "code", str(out)]
    if dies:
        words = [str(killed_script.__file__), str(LAST), *words]
    if ranks > 1:
        words = [*TORCHRUN, str(ranks), *words]
    places = os.pathsep.join([str(Path(killed_script.__file__).parents[1]), *sys.path])
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": places}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if not dies:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def check(run_folder: Path) -> None:
    """Hold a run to the plan, and to what our own trainer was fed."""
    verdict = cm.verify(small_build(), run=run_folder)
    assert verdict.faults == ()
    assert f"code: steps 0 to {STEPS - 1}: recorded by a caller" in verdict.notes
    ours, theirs = recorded(undisturbed(), "code"), recorded(run_folder, "code")
    assert theirs[1] == ours[1]
    assert [step["chain"] for step in theirs[0]] == [step["chain"] for step in ours[0]]


@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("hf_trainer.py", "transformers"),
        ("lightning_module.py", "lightning"),
        ("litgpt_pretrain.py", "litgpt"),
        ("megatron_rows.py", "megatron.core"),
        ("own_loop.py", "torchdata"),  # needs none of them; the main environment tests it too
    ],
)
def test_a_trainer_is_killed_goes_on_and_is_proven(
    script: str, package: str, tmp_path: Path
) -> None:
    if package == "transformers":
        pytest.importorskip("accelerate", reason="needs `make peers`")
    pytest.importorskip(package, reason="needs `make peers`")
    if script == "megatron_rows.py":
        cm.export_rows(
            small_build(), tmp_path / "rows", phase="code", to="megatron", rows_per_file=16
        )
    assert run(script, tmp_path, dies=True) == -9
    with cm.Ledger(tmp_path / "run", cm.open(small_build()).phases["code"]) as ledger:
        assert ledger.next_step in (4, 6)  # litgpt's checkpoints come every other step
        assert ledger.checkpoint is not None
    run(script, tmp_path)
    check(tmp_path / "run")


def test_ranks_are_killed_and_go_on_as_another_number_of_them(tmp_path: Path) -> None:
    pytest.importorskip("torchdata", reason="needs `make peers`")
    assert run("torchtitan_like.py", tmp_path, dies=True, ranks=2) != 0
    run("torchtitan_like.py", tmp_path, ranks=4)
    check(tmp_path / "run")
