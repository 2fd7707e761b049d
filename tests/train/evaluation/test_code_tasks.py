"""Code that a model writes: run with limits, counted by hand, never run unasked."""

import json
from pathlib import Path

import pytest
import torch

import crystalmix as cm
from crystalmix.prep.runtime.errors import InputError, RefusalError
from crystalmix.train.evaluation import code_runner, code_tasks
from crystalmix.train.evaluation.code_runner import Limits
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record.run_folder import PhaseFolder, checkpoints
from crystalmix.train.trainer import checkpoint
from helpers.corpora import crystalmix
from helpers.runs import copied_run, manifest, small_build, state_of

LIMITS = Limits(seconds=2)
PROBLEMS = [
    {"prompt": "# a note ", "test": "assert True"},  # whatever follows is a comment
    {"prompt": "x = 4  # ", "test": "assert x == 5"},
    {"prompt": "def f(n):\n    return n  # ", "test": "def check(g):\n    assert g(3) == 3"}
    | {"entry_point": "f", "task_id": "quartz/1"},
    {"prompt": "def f(:  # ", "test": "assert True"},
]


def write_task(folder: Path) -> Path:
    lines = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS)
    (folder / "sums.jsonl").write_text(lines, "utf-8")
    text = 'task: sums\nproblems: sums.jsonl\nnew_tokens: 4\nstop: ["\\n"]\n'
    (folder / "sums.yaml").write_text(text, "utf-8")
    return folder / "sums.yaml"


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "failed"),
        ("import os; os._exit(0)", "failed"),  # before its tests
        ("raise SystemExit", "failed"),
        ("while True: pass", "timeout"),
        ("x = bytearray(3 << 30)", "failed"),
        ("open('big', 'wb').write(b'x' * (1 << 25))", "failed"),
    ],
)
def test_a_program_passes_at_its_end_within_its_limits(program: str, verdict: str) -> None:
    assert code_runner.run(program, LIMITS) == verdict


@pytest.mark.skipif(not code_runner.is_offline(), reason="no process can leave the network here")
def test_a_program_has_no_network() -> None:
    """Nobody listens there: a network refuses, without one the address can't be reached."""
    call = "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
    assert code_runner.run(f"{call}except ConnectionRefusedError:\n    pass", LIMITS) == "failed"
    assert code_runner.run(f"{call}except OSError:\n    pass", LIMITS) == "passed"


def test_pass_at_1_of_each_checkpoint_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    run, task = copied_run(tmp_path / "run"), write_task(tmp_path)
    table = cm.evaluate(run, [task], phase="code", run_code=True).content()
    kept = checkpoints(PhaseFolder(run / "code").checkpoints)
    assert len(table) == len(kept)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(small_build() / "tokenizer.json"))
    bos = manifest("code").tokenizer.special["bos"]
    for place, row in zip(kept, table, strict=True):
        model = Crystal(ModelSettings(**state_of(place)["model"]))
        checkpoint.load_weights(place, model)
        passed = 0
        for problem in PROBLEMS:
            ids = [bos, *tokenizer.encode(problem["prompt"], add_special_tokens=False).ids]
            answer: list[int] = []
            for _ in range(4):
                with torch.no_grad():
                    answer.append(int(model(torch.tensor([ids + answer]))[0, -1].argmax()))
                if answer[-1] == bos:
                    break
            said = tokenizer.decode(answer).split("\n")[0]
            call = f"\ncheck({problem['entry_point']})" if "entry_point" in problem else ""
            try:
                exec(f"{problem['prompt']}{said}\n{problem['test']}{call}", {})
                passed += 1
            except (AssertionError, SyntaxError):
                pass
        assert (row["metric"], row["value"], row["samples"]) == ("pass@1", passed / 4, 4)
        assert passed == 2
        assert row["error"] == pytest.approx((0.5 * 0.5 / 3) ** 0.5)
    assert cm.verify(small_build(), run=run).faults == ()


def test_nothing_is_run_unasked(tmp_path: Path) -> None:
    run, task = copied_run(tmp_path / "run"), write_task(tmp_path)
    refused = crystalmix("evaluate", run, "--tasks", task)
    assert refused.exit_code == RefusalError.exit_code
    assert "runs code that the model writes; ask for it with --run-code" in refused.stderr
    assert not PhaseFolder(run / "code").tasks.exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sums.yaml", "task: sums\nproblems: none.jsonl\n", "none.jsonl: no such file"),
        ("sums.yaml", "task: sums\nproblems: sums.jsonl\nx: 1\n", "sums.yaml: x: "),
        ("sums.jsonl", '{"prompt": "a"}\n', "sums.jsonl:1: test: "),
        ("sums.jsonl", "", "holds no problem"),
    ],
)
def test_faults_name_file_and_key(file: str, text: str, message: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as told:
        code_tasks.read(task, run_code=True)
    assert "\n" not in str(told.value)
