"""Head and loss in one: the numbers of the plain way, in less memory, and only for a loss."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.testing import assert_close

from crystalmix.train.model import head_loss as headloss
from crystalmix.train.model.crystal import batch_loss, row_losses
from crystalmix.train.model.head_loss import head_losses
from helpers.crystals import TINY, fresh

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def case(rows: int, msl: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> Case:
    """Return hidden states, head, labels and mask, some of it 0."""
    draw = torch.Generator().manual_seed(rows * msl)
    x = torch.randn(rows, msl, 16, generator=draw, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, 16, generator=draw, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows, msl), generator=draw, dtype=torch.int32)
    mask = torch.randint(0, 4, (rows, msl), generator=draw, dtype=torch.int32).clamp(max=1)
    return x, weight, labels, mask


def plain(x: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return row_losses(functional.linear(x, weight), labels, mask)


def gradients(losses: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(batch_loss(losses, 7), leaves))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 50), st.integers(2, 99), st.integers(1, 60))
def test_losses_and_gradients_are_those_of_the_plain_way(
    rows: int, msl: int, vocabulary: int, chunk: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        x, weight, labels, mask = case(rows, msl, vocabulary, dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(headloss, "CHUNK", chunk)
            patch.setattr(headloss, "BLOCK_BYTES", 300 * chunk)
            losses = head_losses(x, weight, labels, mask)
        wanted = plain(x, weight, labels, mask)
        assert losses.dtype == dtype
        assert_close(losses, wanted)
        assert bool((losses[mask == 0] == 0).all())
        assert_close(gradients(losses, x, weight), gradients(wanted, x, weight))


def test_within_autocast_products_are_in_its_dtype_and_losses_in_float32() -> None:
    x, weight, labels, mask = case(3, 40, 211)
    with torch.autocast("cpu", torch.bfloat16):
        losses, wanted = (how(x, weight, labels, mask) for how in (head_losses, plain))
    assert losses.dtype == torch.float32
    assert_close(losses, wanted, atol=1e-6, rtol=0)
    exact = gradients(plain(x, weight, labels, mask), x, weight)
    ours, theirs = (gradients(each, x, weight) for each in (losses, wanted))
    for mine, other, best in zip(ours, theirs, exact, strict=True):
        error, allowed = ((each - best).norm() / best.norm() for each in (mine, other))
        assert mine.dtype == torch.float32
        assert error < 1.2 * allowed + 1e-3


def test_a_model_gives_the_losses_of_its_logits_and_the_same_gradients() -> None:
    model = fresh(replace(TINY, attention="matmul"))
    ids = torch.arange(120).view(3, 40) % 211
    labels, mask = ids.roll(-1, 1), (ids % 5 > 0).int()
    wanted = row_losses(model(ids), labels, mask)
    losses = model(ids, labels, mask)
    assert_close(losses, wanted, atol=1e-6, rtol=0)
    leaves = list(model.parameters())
    assert_close(gradients(losses, *leaves), gradients(wanted, *leaves), atol=1e-7, rtol=1e-4)


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    x, weight, labels, mask = case(4, 100, 500)
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        head_losses(x, weight, labels, mask)
    assert sum(held) <= 4 * (x.numel() + weight.numel())
    assert sum(held) < 4 * 400 * 500 / 10


def test_without_gradients_none_are_computed() -> None:
    x, weight, labels, mask = case(2, 30, 50)
    with torch.no_grad():
        losses = head_losses(x, weight, labels, mask)
        assert_close(losses, plain(x, weight, labels, mask))
    assert not losses.requires_grad


def test_losses_that_are_not_all_used_alike_are_refused() -> None:
    x, weight, labels, mask = case(2, 30, 50)
    assert_close(
        torch.autograd.grad(head_losses(x, weight, labels, mask).mean(), weight),
        torch.autograd.grad(plain(x, weight, labels, mask).mean(), weight),
    )
    losses = head_losses(x, weight, labels, mask)
    with pytest.raises(RuntimeError, match="may only be summed and scaled, all of them alike"):
        (losses * torch.arange(30)).sum().backward()
