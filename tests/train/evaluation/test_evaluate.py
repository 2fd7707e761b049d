"""Evaluation: the mean nll of held-out labels by part and kind, and no trace of it in training."""

import os
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.runtime.errors import RecipeError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.evaluation.evaluate import EvaluationSettings, Evaluator
from crystalmix.train.evaluation.held_out import KINDS
from crystalmix.train.evaluation.losses import held_out_losses
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer import session
from crystalmix.train.trainer.trainer import Trainer
from helpers import watched
from helpers.corpora import crystalmix
from helpers.runs import json_lines, recorded, run_file, small_build, write_run
from helpers.worlds import SHARED_WORK, train_together


def weights(run: Path) -> str:
    newest = folder.latest(run / "mixed" / "checkpoints")
    assert newest is not None
    return folder.read_state(newest).weights


def lines(run: Path, name: str = "evaluation.jsonl") -> list[Json]:
    return json_lines(run / "mixed" / name)


def job(trainer: Trainer) -> Any:
    assert trainer.evaluator.job is not None
    return trainer.evaluator.job


def test_evaluations_are_of_every_few_steps_and_of_the_last() -> None:
    told = lines(watched.watched())
    assert [*dict.fromkeys(entry["step"] for entry in told)] == [5, 10, 15, 16]
    kinds = ("left_to_right", "fim", "middle")
    groups = [("wiki-held", "left_to_right"), *(("code-held", kind) for kind in kinds)]
    for step in (5, 10, 15, 16):
        here = [entry for entry in told if entry["step"] == step]
        assert [(entry["part"], entry["kind"]) for entry in here] == groups
        counts = [(entry["rows"], entry["tokens"]) for entry in here]
        assert counts == [(e["rows"], e["tokens"]) for e in told[:4]]
    assert told[-2]["loss"] < told[2]["loss"]


def test_the_loss_of_a_part_and_kind_is_the_mean_over_its_labels(tmp_path: Path) -> None:
    trainer = watched.trainer(tmp_path)
    held = job(trainer).held
    paths = [held.root / path for path in held.manifest.paths]
    rows = torch.from_numpy(scatter.gather(paths, held.refs.shard, held.refs.row)).long()
    with torch.no_grad():
        logs = trainer.model(rows[:, 0]).double().log_softmax(-1)
        told = held_out_losses(trainer.model, held, 3)
    nll = -logs.gather(-1, rows[:, 2][..., None])[..., 0].numpy()
    for entry in told:
        number = [part.name for part in held.manifest.parts].index(entry.part)
        mask = (rows[:, 1].numpy() == 1) & (held.kind == KINDS.index(entry.kind))
        mask &= (held.refs.part == number)[:, None]
        assert entry.tokens == mask.sum()
        assert entry.rows == mask.any(1).sum()
        assert entry.loss == pytest.approx(nll[mask].mean(), rel=1e-6)
    assert sum(entry.tokens for entry in told) == int(rows[:, 1].sum())


def test_training_is_the_same_with_evaluation_and_without(tmp_path: Path) -> None:
    watched.train(tmp_path, run=run_file())
    assert weights(tmp_path) == weights(watched.watched())
    assert recorded(tmp_path, "mixed") == recorded(watched.watched(), "mixed")
    assert lines(tmp_path) == []
    assert not (tmp_path / "mixed" / "samples.jsonl").exists()


def test_an_evaluation_moves_no_weight_and_leaves_no_gradient(tmp_path: Path) -> None:
    trainer = watched.trainer(tmp_path)
    (tmp_path / "mixed").mkdir()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    state = torch.get_rng_state()
    told = trainer.evaluator.after(5, trainer.model, trainer.world, "float32")
    assert told
    assert trainer.evaluator.after(6, trainer.model, trainer.world, "float32") == []
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], parameter)
        assert parameter.grad is None
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("stop", [5, 7, 10])
def test_a_stop_and_a_resume_give_the_evaluations_of_one_go(stop: int, tmp_path: Path) -> None:
    watched.train(tmp_path, stop=stop)
    assert {entry["step"] for entry in lines(tmp_path)} == {s for s in (5, 10) if s <= stop}
    watched.train(tmp_path)
    for name in ("evaluation.jsonl", "samples.jsonl"):
        assert lines(tmp_path, name) == lines(watched.watched(), name)
    assert weights(tmp_path) == weights(watched.watched())


def test_evaluations_after_the_checkpoint_that_is_resumed_are_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    copytree(watched.watched(), run)
    folder.remember(run, watched.split_build())
    for path in folder.checkpoints(run / "mixed" / "checkpoints")[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with (run / "mixed" / "evaluation.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "part')
    watched.train(run)
    for name in ("evaluation.jsonl", "samples.jsonl"):
        path = f"mixed/{name}"
        assert (run / path).read_bytes() == (watched.watched() / path).read_bytes()


def test_samples_are_written_beside_and_show_tells_the_last_of_both() -> None:
    run = watched.watched()
    told = lines(run, "samples.jsonl")
    assert [entry["step"] for entry in told] == [5, 5, 10, 10, 15, 15, 16, 16]
    assert [entry["suffix"] for entry in told[:2]] == [None, "\n    return grain\n"]
    assert all(len(entry["ids"]) <= 6 for entry in told)
    shown = crystalmix("show", run)
    assert shown.exit_code == 0
    last = [entry for entry in lines(run) if entry["step"] == 16]
    for entry in last:
        words = [entry["part"], entry["kind"], str(entry["rows"]), str(entry["tokens"])]
        losses = [entry["loss"], entry["bits_per_byte"]]
        words += ["-" if value is None else f"{value:.4f}" for value in losses]
        words += (
            ["-"] if entry["whole"] is None else [str(entry["exact"]), "of", str(entry["whole"])]
        )
        assert ["mixed", "16", *words] in [line.split() for line in shown.stdout.splitlines()]
    assert "mixed: bits per byte after 16 steps, all kinds: wiki-held " in shown.stdout
    assert "  \\n    return grain\\n  " in shown.stdout
    assert "crystal lattice  -" in shown.stdout


def test_batches_of_any_size_give_the_same_losses(tmp_path: Path) -> None:
    trainer = watched.trainer(tmp_path)
    with torch.no_grad():
        every = [held_out_losses(trainer.model, job(trainer).held, size) for size in (1, 4, 99)]
    for one, *others in zip(*every, strict=True):
        for other in others:
            assert replace(other, loss=0) == replace(one, loss=0)
            assert other.loss == pytest.approx(one.loss, rel=1e-6)


def test_a_held_out_phase_is_not_trained_on(tmp_path: Path) -> None:
    said = watched.train(tmp_path, run=run_file())
    assert [line.split(":")[0] for line in said] == ["mixed"]
    assert not (tmp_path / "held").exists()
    with pytest.raises(UsageError, match=r"no phase is called 'held' .*\(there are mixed\)"):
        session.train(
            watched.split_build(), str(run_file()), tmp_path, phases=["held"], say=said.append
        )


def test_a_phase_that_shares_texts_with_training_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run.yaml", evaluation={"phase": "code"})
    with pytest.raises(RefusalError, match=r"texts of code are trained on too: .*part book of"):
        session.train(small_build(), str(run), tmp_path / "out", phases=["prose"], say=print)
    assert not (tmp_path / "out").exists()


def test_a_phase_of_another_build_is_found_beside_the_run_file(tmp_path: Path) -> None:
    where = os.path.relpath(watched.split_build(), tmp_path)
    run = write_run(tmp_path / "run.yaml", evaluation={"phase": "held", "build": where})
    settings = load(run).evaluation
    assert settings is not None
    assert settings.root(small_build()).resolve() == watched.split_build().resolve()
    # the other build's held-out texts are of the same files, so training here has some of them
    with pytest.raises(RefusalError, match="texts of held are trained on too"):
        session.train(small_build(), str(run), tmp_path / "out", phases=["prose"], say=print)


def evaluator(**changes: Any) -> Evaluator:
    run = load(run_file())
    settings = EvaluationSettings(**{**watched.EVALUATION, "prompts": (), **changes})
    build, out = watched.split_build(), Path("unused")
    return Evaluator(settings, watched.manifest(), build, out, run.model)


def test_what_the_model_can_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="take 66 positions, the model has 64; shorten"):
        evaluator(prompts=("",), new_tokens=65)
    with pytest.raises(UsageError, match="has no phase 'hold'"):
        evaluator(phase="hold")
    run = load(run_file())
    small = Evaluator(
        EvaluationSettings(phase="held"),
        watched.manifest(),
        watched.split_build(),
        tmp_path,
        run.model,
    )
    assert small.due(100)
    assert not small.due(99)
    assert not Evaluator(None, watched.manifest(), small_build(), tmp_path, run.model).due(100)


def test_rows_that_the_model_would_misread_are_refused() -> None:
    """Of another tokenizer, or one token longer than the model; and prompts that just fit."""
    run, settings = load(run_file()), EvaluationSettings(phase="held")
    sealed, build, out = watched.manifest(), watched.split_build(), Path("unused")
    other = replace(sealed, tokenizer=replace(sealed.tokenizer, fingerprint="another"))
    with pytest.raises(RefusalError, match="held was made with another tokenizer than mixed"):
        Evaluator(settings, other, build, out, run.model)
    short = replace(run.model, max_position_embeddings=63)
    with pytest.raises(RecipeError, match="must be at least 64 for the rows of .* held, got 63"):
        Evaluator(settings, sealed, build, out, short)
    assert evaluator(prompts=("",), new_tokens=63).job is not None
    with pytest.raises(RefusalError, match="take 65 positions, the model has 64"):
        evaluator(prompts=("",), new_tokens=64)


def test_an_evaluation_computes_in_the_numbers_of_the_run(tmp_path: Path) -> None:
    trainer = watched.trainer(tmp_path)
    (tmp_path / "mixed").mkdir()
    whole, half = (
        trainer.evaluator.after(5, trainer.model, trainer.world, dtype)
        for dtype in ("float32", "bfloat16")
    )
    with torch.no_grad():
        plain = held_out_losses(trainer.model, job(trainer).held, 3)
        with torch.autocast("cpu", torch.bfloat16):
            short = held_out_losses(trainer.model, job(trainer).held, 3)
        assert all(line.bytes is None for line in plain)  # nothing tells what ids spell
    for told, wanted in ((whole, plain), (half, short)):
        losses = [entry.loss for entry in told if entry.kind != "middle"]
        assert losses == [entry.loss for entry in wanted]
    assert half != whole


def test_faults_of_the_section_are_told_with_file_and_line(tmp_path: Path) -> None:
    for key, value, rule in (
        ("steps", 0, "must be positive, got 0"),
        ("row", 3, "is no known key"),
        ("prompts", [{"suffix": "x"}], "phase: held"),
    ):
        path = write_run(tmp_path / "run.yaml", evaluation={"phase": "held", key: value})
        with pytest.raises(RecipeError) as told:
            load(path)
        assert str(told.value).startswith(f"{path}:")
        assert "\n" not in str(told.value)
        assert f"evaluation.{key}" in str(told.value)
        assert rule in str(told.value) or key == "prompts"


def together(run: Path, out: Path) -> None:
    """Train ten steps as two processes."""
    train_together(2, (str(watched.split_build()), str(run), str(out), ("mixed",), 10))


@pytest.mark.parametrize("parallel", SHARED_WORK)
def test_two_processes_evaluate_as_one_does(parallel: str, tmp_path: Path) -> None:
    """The rows are shared out batch by batch; no process waits for another in vain.

    Of three batches one process has two, the other one: it goes through the last again, uncounted.
    """
    settings = {"parallel": parallel, "checkpoint_steps": 5}
    uneven = {**watched.EVALUATION, "batch": 4}
    run = write_run(tmp_path / "run.yaml", runconfig=settings, evaluation=uneven)
    together(run, tmp_path / "run")
    wanted = [entry for entry in lines(watched.watched()) if entry["step"] <= 10]
    found = lines(tmp_path / "run")
    near = ("loss", "bits_per_byte")
    nothing = dict.fromkeys(near)
    assert [{**e, **nothing} for e in found] == [{**e, **nothing} for e in wanted]
    losses = [[[e[key] or 0.0 for key in near] for e in told] for told in (found, wanted)]
    assert np.allclose(*losses, rtol=1e-4)
    assert len(lines(tmp_path / "run", "samples.jsonl")) == 4
    if parallel == "fsdp":  # whose weights are gathered for each evaluation
        plain = write_run(tmp_path / "plain.yaml", runconfig=settings)
        together(plain, tmp_path / "plain")
        assert weights(tmp_path / "run") == weights(tmp_path / "plain")
        assert recorded(tmp_path / "run", "mixed") == recorded(tmp_path / "plain", "mixed")
