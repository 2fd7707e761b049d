"""Targets beyond domains: answers in bits per byte, and middles of code in runs of factors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.prep.runtime.errors import InputError, RecipeError, StaleError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.ablations import factor_results
from crystalmix.train.ablations.measure import Answers, measure_answers, read_answers
from crystalmix.train.ablations.proxy_sizes import model_settings
from crystalmix.train.ablations.report import read_report
from crystalmix.train.ablations.results import Insight
from crystalmix.train.ablations.tables import connect
from crystalmix.train.api.ablations import ablation_cost
from crystalmix.train.model.crystal import Crystal, initialise
from helpers.ablations import run, tiny, varied, write_spec

SUMS = [{"prompt": f"{a} + {b} = ", "answer": f"{a + b}\n"} for a in range(4) for b in range(4)]
LONG = {"prompt": "def f():\n", "answer": "    return [1, 2, 3, 4, 5, 6]\n" * 12}


def write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_bits_per_byte_are_those_of_each_answer_token_after_all_before_it(tmp_path: Path) -> None:
    build = tiny() / "build"
    manifest = manifests.read(build / "phases" / "held-out")
    of = Crystal(model_settings("tiny", manifest.tokenizer.vocab, manifest.msl))
    initialise(of, 3)
    path = write_lines(tmp_path / "tasks.jsonl", [*SUMS, LONG])
    loss = measure_answers(
        of, build, "held-out", Answers("t", str(path), "prompt", "answer", ""), 1
    )
    tokenizer = load(TokenizerSettings(str(build / "tokenizer.json")))
    total, size, tokens = 0.0, 0, 0
    for line in [*SUMS, LONG]:
        head = 1 + len(tokenizer.encode(line["prompt"]))
        ids = [tokenizer.id_of("bos"), *tokenizer.encode(line["prompt"] + line["answer"]).tolist()]
        size += len(line["answer"].encode())
        tokens += len(ids) - head
        half = manifest.msl // 2
        for place in range(head, len(ids)):
            end = min(len(ids), head + (place - head) // half * half + half)
            first = max(0, end - manifest.msl - 1)  # as much as fits with the piece's last token
            row = torch.tensor(ids[first:place])[None]
            with torch.no_grad():
                total += float(
                    functional.cross_entropy(of(row)[0, -1:], torch.tensor([ids[place]]))
                )
    assert loss.bits_per_byte == pytest.approx(total / np.log(2) / size, rel=1e-4)
    assert (loss.loss, loss.in_bits) == (loss.bits_per_byte, True)
    assert (loss.tokens, loss.bytes, loss.rows) == (tokens, size, len(SUMS) + 1)


def test_a_task_is_fitted_valued_and_reported_like_a_domain(tmp_path: Path) -> None:
    tasks = {"sums": {"file": "sums.jsonl", "value": 1.0}}
    spec = write_spec(tmp_path, tasks=tasks, checks={"seeds": 1, "pareto": True})
    path = write_lines(tmp_path / "sums.jsonl", SUMS)
    report = run(spec, tmp_path / "out")
    assert report.value == pytest.approx(
        {"wiki": 0.2, "python": 0.15, "javascript": 0.15, "sums": 0.5}
    )
    assert set(report.recommendation.predicted) == set(report.value)
    assert set(report.recommendation.shares) == set(report.tokens) == set(report.value) - {"sums"}
    [row] = connect(tmp_path / "out").rows(
        "SELECT loss, bits_per_byte FROM losses WHERE domain = 'sums' AND run = 'centre'"
    )
    assert row["loss"] == row["bits_per_byte"]
    seen = Insight(tmp_path / "out")
    assert seen.fit.targets == ("javascript", "python", "wiki", "sums")  # a folder's spec is sorted
    assert set(seen.left_out()) == set(seen.fit.targets)
    assert len(seen.heat()[1]) > 0
    assert len(seen.front()) > 0
    assert set(seen.by_code_share()[1]) == {"valued", "language", "code"}
    before = (tmp_path / "out" / "report.json").read_bytes()
    run(spec, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").read_bytes() == before
    write_lines(path, SUMS[:5])
    with pytest.raises(StaleError, match="tasks.sums"):
        run(spec, tmp_path / "out")


def test_faulty_tasks_are_told_before_any_run(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(InputError, match="x.jsonl: no such file; `tasks` of the spec names it"):
        read_answers(path, "prompt", "answer")
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "utf-8")
    with pytest.raises(InputError, match="x.jsonl:2: needs texts `prompt` and `answer`"):
        read_answers(path, "prompt", "answer")
    path.write_text("{", "utf-8")
    with pytest.raises(InputError, match="x.jsonl:1: is no JSON"):
        read_answers(path, "prompt", "answer")
    path.write_text("", "utf-8")
    with pytest.raises(InputError, match="holds no line"):
        read_answers(path, "prompt", "answer")
    spec = write_spec(tmp_path, tasks={"chess": {"file": "y.jsonl"}})
    with pytest.raises(InputError, match="y.jsonl: no such file"):
        ablation_cost(spec)
    spec = write_spec(tmp_path, tasks={"wiki": {"file": "x.jsonl"}})
    with pytest.raises(RecipeError, match="tasks: wiki is the name of a domain"):
        run(spec, tmp_path / "out")


def test_runs_of_factors_are_judged_on_middles_too() -> None:
    rows = connect(varied()).rows(
        "SELECT role, domain, sum(losses.tokens) AS tokens FROM losses JOIN runs USING (run) "
        "WHERE last AND domain LIKE 'python%' GROUP BY ALL"
    )
    counted = {(row["role"], row["domain"]): row["tokens"] for row in rows}
    assert ("design", "python.infill") not in counted
    assert 0 < counted["factor", "python.infill"] < counted["factor", "python"]
    factors = {one.factor: one for one in read_report(varied()).factors}
    assert set(factors["fim"].levels[0].losses) > {"python.infill", "javascript.infill"}
    seen = Insight(varied())
    losses = factor_results.judged_losses(seen, "infilling")
    [low, high] = [factors["fim"].levels[0].losses[n + ".infill"] for n in ("python", "javascript")]
    ours = np.mean([loss for key, loss in losses.items() if key[:2] == ("fim", "0")])
    assert ours == pytest.approx((low + high) / 2)
    gap = factor_results.difference(varied(), "fim", "0.9", "0", target="infilling")
    assert gap.pairs == 2
    with pytest.raises(InputError, match="measured no chess; take one of valued, infilling"):
        factor_results.weights(seen, "chess")


def test_the_third_phase_is_compared_at_equal_compute_and_published_shares() -> None:
    rows = connect(varied()).rows(
        "SELECT run, level, draw, tokens, map_entries(asked) AS asked, len(manifests) AS phases "
        "FROM runs WHERE factor = 'third_phase' ORDER BY run"
    )
    assert len({row["tokens"] for row in rows}) == 1
    assert {row["level"]: row["phases"] for row in rows} == {"without": 2, "with": 3}
    shares = {row["level"]: {e["key"]: e["value"] for e in row["asked"]} for row in rows}
    language = {level: one["wiki"] for level, one in shares.items()}
    rows_of_phases = np.array([79721, 214387, 27728])  # equal batches
    parts = rows_of_phases / rows_of_phases.sum()
    assert language["without"] == pytest.approx(parts[0] + 0.372 * parts[1:].sum(), abs=0.02)
    assert language["with"] == pytest.approx(parts @ [1, 0.372, 0.167], abs=0.02)
    folder = varied() / "runs" / "third_phase-with-1"
    rates = [
        json.loads((folder / f"third_phase-with-1-{k}" / "run.json").read_text("utf-8"))["run"]
        for k in (2, 3)
    ]
    peak = 0.03
    second, third = (one["optimizer"]["learning_rate"] for one in rates)
    assert second[0]["start"] == second[0]["end"] == peak
    assert third[-1]["end"] == 0.0
    draws = {
        row["draw"]: manifests.read(
            varied() / "runs" / row["run"] / "build" / "phases" / f"{row['run']}-1"
        )
        for row in rows
        if row["level"] == "with"
    }
    first, other = (draws[k].parts[0].shards for k in (0, 1))
    assert first != other
