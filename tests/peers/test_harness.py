"""lm-evaluation-harness on the checkpoints of a run: its numbers equal a hand computation."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import crystalmix as cm
from crystalmix.prep.runtime.errors import InputError, RefusalError
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record import run_folder
from crystalmix.train.trainer import checkpoint
from helpers import watched
from helpers.runs import copied_run, manifest, recorded, small_build, state_of, write_run

pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
ENDINGS = """\
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: endings.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
TEXTS = """\
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte}
"""
ITEMS: list[dict[str, Any]] = [
    {"text": "def river(stone):", "choices": [" return", " amber quartz", " import ledger"]},
    {"text": "the crystal lattice", "choices": [" grain", " harbour", " = {"]},
    {"text": "function meadow(", "choices": ["voyage) {", "x):", "!"]},
    {"text": "batch token", "choices": [" ledger", " <s>", "\n\n\n"]},
]
LONG = " ".join(["crystal", "river", "ledger", "quartz", "mixture"] * 40)  # over the model's 64 ids
DOCUMENTS = ["def voyage(grain):\n    return grain\n", "über naïve façade", LONG]


def write_tasks(folder: Path) -> list[Path]:
    items = [{**item, "label": i % 3} for i, item in enumerate(ITEMS)]
    texts = [{"text": text} for text in DOCUMENTS]
    for name, task, lines in (("endings", ENDINGS, items), ("texts", TEXTS, texts)):
        (folder / f"{name}.yaml").write_text(task, "utf-8")
        data = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(data, "utf-8")
    return [folder / "endings.yaml", folder / "texts.yaml"]


class ByHand:
    """A checkpoint's model and tokenizer, asked one prediction at a time."""

    def __init__(self, place: Path) -> None:
        from tokenizers import Tokenizer

        self.model = Crystal(ModelSettings(**state_of(place)["model"]))
        checkpoint.load_weights(place, self.model)
        self.tokenizer = Tokenizer.from_file(str(small_build() / "tokenizer.json"))
        self.bos = manifest("code").tokenizer.special["bos"] or 0

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def nll(self, before: list[int], ids: list[int]) -> float:
        total = 0.0
        for token in ids:
            logits = self.model(torch.tensor([before]))[0, -1].double()
            total -= float(logits[token] - logits.logsumexp(0))
            before = [*before, token]
        return total

    def accuracy(self) -> tuple[float, float]:
        """Accuracy by likelihood, and by likelihood for each byte of the choice."""
        right = [0, 0]
        for i, item in enumerate(ITEMS):
            first = [self.bos, *self.encode(item["text"])]
            whole = [self.encode(item["text"] + choice) for choice in item["choices"]]
            scores = [-self.nll(first, ids[len(first) - 1 :]) for ids in whole]
            sizes = [len(choice) for choice in item["choices"]]
            normed = [s / n for s, n in zip(scores, sizes, strict=True)]
            for place, values in enumerate((scores, normed)):
                right[place] += max(range(3), key=lambda j: values[j]) == i % 3
        return right[0] / len(ITEMS), right[1] / len(ITEMS)

    def bits_per_byte(self) -> float:
        nll = size = 0.0
        for text in DOCUMENTS:
            ids = [self.bos, *self.encode(text)]
            for start in range(0, len(ids) - 1, 64):
                nll += self.nll(ids[start : start + 1], ids[start + 1 : start + 65])
            size += len(text.encode())
        return nll / size / math.log(2)


def test_the_numbers_of_every_checkpoint_equal_a_hand_computation(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs `make peers`")
    run, tasks = copied_run(tmp_path / "run"), write_tasks(tmp_path)
    table = cm.evaluate(run, tasks, phase="code").content()
    kept = run_folder.checkpoints(run / "code" / "checkpoints")
    assert {row["step"] for row in table} == {run_folder.step_of(path) for path in kept}
    for place in kept:
        values = {
            (row["task"], row["metric"]): row["value"]
            for row in table
            if row["step"] == run_folder.step_of(place)
        }
        hand = ByHand(place)
        assert (values["endings", "acc"], values["endings", "acc_norm"]) == hand.accuracy()
        assert values["texts", "bits_per_byte"] == pytest.approx(hand.bits_per_byte(), rel=1e-5)
    before = (run / "code" / "tasks.jsonl").read_bytes()
    assert cm.evaluate(run, tasks, phase="code", every=1000).content() == [
        row for row in table if row["step"] == 10
    ]
    assert (run / "code" / "tasks.jsonl").read_bytes() == before  # nothing is done again
    assert cm.verify(small_build(), run=run).faults == ()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("doc_to_text: text", "doc_to_text: !function x.y"), InputError, "as plain YAML"),
        (("task: endings", "group: endings"), InputError, "names no task"),
        (("json\n", "glue\n"), InputError, "must read local data"),
        (("endings.jsonl", "none.jsonl"), InputError, "none.jsonl: no such file"),
        (("task:", "unsafe_code: true\ntask:"), RefusalError, "runs code that the model writes"),
    ],
)
def test_a_task_that_runs_code_or_reads_from_elsewhere_is_refused(
    change: tuple[str, str], error: Any, message: str, tmp_path: Path
) -> None:
    [task, _] = write_tasks(tmp_path)
    task.write_text(ENDINGS.replace(*change, 1), "utf-8")
    with pytest.raises(error, match=message):
        cm.evaluate(copied_run(tmp_path / "run"), [task])


def test_a_run_evaluates_its_checkpoints_itself_killed_or_not(tmp_path: Path) -> None:
    """The numbers are those of `evaluate`, and the training is the same, bit for bit."""
    pytest.importorskip("lm_eval", reason="needs `make peers`")
    write_tasks(tmp_path)
    tasks = {"files": ["endings.yaml", "texts.yaml"], "every": 6, "few_shot": 1, "limit": 2}
    evaluation = {**watched.EVALUATION, "tasks": tasks}
    keep = {"keep_checkpoints": 9}
    run = write_run(tmp_path / "run.yaml", evaluation=evaluation, runconfig=keep)
    plain = write_run(tmp_path / "plain.yaml", runconfig=keep)
    for name, file, stop in (("one", run, None), ("two", run, 6), ("none", plain, None)):
        watched.train(tmp_path / name, run=file, stop=stop)
    lines = (tmp_path / "two" / "mixed" / "tasks.jsonl").read_bytes()
    (tmp_path / "two" / "mixed" / "tasks.jsonl").unlink()  # as a kill leaves it
    draws = random.getstate(), torch.get_rng_state()
    watched.train(tmp_path / "two", run=run)
    assert random.getstate() == draws[0]
    assert torch.equal(torch.get_rng_state(), draws[1])
    written = (tmp_path / "two" / "mixed" / "tasks.jsonl").read_bytes()
    assert written.startswith(lines)
    assert (tmp_path / "one" / "mixed" / "tasks.jsonl").read_bytes() == written
    assert recorded(tmp_path / "one", "mixed") == recorded(tmp_path / "none", "mixed")
    asked = cm.evaluate(
        tmp_path / "none",
        [tmp_path / "endings.yaml", tmp_path / "texts.yaml"],
        every=6,
        few_shot=1,
        limit=2,
    ).content()
    told = [json.loads(line) for line in written.splitlines()]
    assert {line["step"] for line in told} == {6, 12, 16}
    assert all(line["samples"] == 2 for line in told)
    keys = ("step", "task", "metric", "value")
    assert [[line[key] for key in keys] for line in asked] == [
        [pytest.approx(line[key]) if key == "value" else line[key] for key in keys] for line in told
    ]
    assert len(list((tmp_path / "one" / "later").glob("tasks-mixed-step-*/bound.json"))) == 3
    assert cm.verify(watched.split_build(), run=tmp_path / "one").faults == ()
