"""Placing: made without memory, filled by our draws, and the same numbers however it is run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from crystalmix.prep.runtime.errors import MachineError, RecipeError, RefusalError
from crystalmix.train.model.crystal import Crystal, fused_attention, initialise
from crystalmix.train.model.optimizer import Linear, OptimSettings
from crystalmix.train.model.processes import World
from crystalmix.train.runfile.run_file import load
from crystalmix.train.runfile.settings import Run, RunSettings
from crystalmix.train.trainer import placement
from crystalmix.train.trainer.checkpoint import weights_digest
from crystalmix.train.trainer.placement import Placed, enough_memory, place
from helpers.crystals import TINY, fresh
from helpers.runs import write_run

OPTIMIZER = OptimSettings(learning_rate=(Linear(0.0, 0.01, 3),))


def placed(**settings: Any) -> Placed:
    return place(Run(TINY, OPTIMIZER, RunSettings(**settings)), World())


def gradients(model: Placed) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    ids = torch.randint(TINY.vocab_size, (2, 33), generator=torch.Generator().manual_seed(4))
    nll = model.model(ids[:, :-1], ids[:, 1:], torch.ones(2, 32))
    nll.mean().backward()
    return nll.detach(), {name: p.grad for name, p in model.model.named_parameters()}


def test_the_weights_are_those_of_a_model_that_was_made_at_once() -> None:
    model = Crystal(TINY)
    initialise(model, 7)
    ours = placed(seed=7).model
    assert_close(dict(ours.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    assert {p.device.type for p in ours.parameters()} == {"cpu"}
    assert weights_digest(ours) == weights_digest(model) != weights_digest(fresh(TINY, 8))


def test_no_global_random_state_is_moved() -> None:
    before = torch.get_rng_state()
    placed()
    assert torch.equal(torch.get_rng_state(), before)


def test_recomputed_activations_give_the_same_gradients() -> None:
    (loss, ours), (same, theirs) = gradients(placed(recompute=True)), gradients(placed())
    assert torch.equal(loss, same)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own
def test_compiled_layers_keep_their_names_and_their_numbers() -> None:
    compiled, plain = placed(compile=True), placed()
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    (loss, ours), (same, theirs) = gradients(compiled), gradients(plain)
    assert_close(loss, same, atol=1e-4, rtol=1e-5)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("length", [8, 1100])
def test_short_rows_in_bfloat16_attend_as_long_ones_do(length: int) -> None:
    generator = torch.Generator().manual_seed(5)
    wide = [torch.randn(1, 2, length, 8, generator=generator) for _ in range(3)]
    short = [x.bfloat16() for x in wide]
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_attention(*short, scale=0.3)
    assert found.dtype == torch.bfloat16
    wanted = fused_attention(*(x.float() for x in short), scale=0.3)
    assert_close(found.float(), wanted, atol=0.02, rtol=0.02)
    if length == 8:  # rounded once, at the end
        assert torch.equal(found, wanted.bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": "tensor"}, "parallel: must be 'none', 'ddp' or 'fsdp', got 'tensor'"),
        ({"dtype": "float16"}, "dtype: must be 'auto', 'float32' or 'bfloat16', got 'float16'"),
        ({"threads": 10**9}, "threads: must be at most 4096, got 1000000000"),
        ({"seed": 2**70}, f"seed: must be below {2**63}, got {2**70}"),
        ({"keep_every": 0}, "keep_every: must be positive, got 0"),
        ({"prefetch": 0}, "prefetch: must be positive, got 0"),
        ({"readers": -1}, "readers: must be positive, got -1"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(write_run(tmp_path / "run.yaml", runconfig=changes))
    with pytest.raises(ValueError, match=next(iter(changes))):
        RunSettings(**changes)


def test_only_what_numbers_follow_from_is_held_against_a_resume() -> None:
    settings = RunSettings()
    run = Run(TINY, OPTIMIZER, settings)
    for how in ({"parallel": "fsdp"}, {"keep_every": 9}, {"compile": True}, {"micro_batch": 2}):
        assert replace(run, settings=replace(settings, **how)).content() == run.content()
    for what in ({"seed": 2}, {"dtype": "bfloat16"}):
        assert replace(run, settings=replace(settings, **what)).content() != run.content()


def test_a_model_that_no_machine_holds_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "Crystal", None)  # nothing is made
    model = replace(TINY, num_hidden_layers=10_000, filter_size=1 << 24)
    with pytest.raises(RefusalError, match=r"take [\d,.]+ GB, this machine has .* fsdp$"):
        place(Run(model, OPTIMIZER, RunSettings()), World())


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(1 << 50),
        lambda: torch.empty((1 << 40, 1 << 40)),
        lambda: np.empty(1 << 50),
        lambda: [0] * (1 << 60),
    ],
    ids=["a tensor", "a size that overflows", "an array", "a list"],
)
def test_memory_that_is_not_there_is_one_line_with_a_remedy(
    allocate: Callable[[], object],
) -> None:
    rule = r"phase one: out of memory \(.*micro_batch"
    with pytest.raises(MachineError, match=rule) as error, enough_memory("one"):
        allocate()
    assert "\n" not in str(error.value)


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("one"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
