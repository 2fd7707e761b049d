"""Masked rows against each document alone: logits, losses and gradients."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from crystalmix.train.model import crystal
from crystalmix.train.model.crystal import (
    Crystal,
    batch_loss,
    fused_attention,
    matmul_attention,
)
from crystalmix.train.model.documents import Documents, apart, flexible
from helpers.crystals import TINY, fresh

CPU = torch.device("cpu")
LENGTHS = [np.array([7, 1, 9, 3, 4]), np.array([24]), np.array([5, 19])]
MSL = 24
WAYS = pytest.mark.parametrize("way", ["apart", "matmul", "flex"])
QUIET = pytest.mark.filterwarnings("ignore::UserWarning")  # FlexAttention is slow uncompiled


def made(attention: Literal["sdpa", "matmul"] = "sdpa") -> Crystal:
    return fresh(replace(TINY, attention=attention))


def batch(vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(0, vocab, (3, MSL), generator=generator) for _ in range(2))
    return ids, labels, (torch.rand(3, MSL, generator=generator) < 0.8).int()


def alone(model: Crystal, *rows: Tensor) -> Tensor:
    """What each piece gives by itself, put together again."""
    parts: list[Tensor] = []
    for row, lengths in enumerate(LENGTHS):
        pieces = zip(*(x[row].split(lengths.tolist()) for x in rows), strict=True)
        parts.append(torch.cat([model(*(x[None] for x in piece)) for piece in pieces], dim=1))
    return torch.cat(parts)


def masking(way: str, monkeypatch: pytest.MonkeyPatch) -> Crystal:
    """Return a model that masks by one of the three ways; of FlexAttention on a CPU."""
    if way == "flex":
        pytest.importorskip("torch.nn.attention.flex_attention", reason="came with torch 2.5")
        monkeypatch.setattr(crystal, "apart", lambda *given: flexible(*given[:-1]))
    return made("matmul" if way == "matmul" else "sdpa")


@WAYS
@QUIET
def test_logits_of_a_piece_are_those_of_the_piece_alone(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing invariant 6."""
    model = masking(way, monkeypatch)
    ids, *_ = batch(model.settings.vocab_size)
    with torch.no_grad():
        got = model(ids, documents=Documents.of(LENGTHS, CPU))
    torch.testing.assert_close(got, alone(model, ids), atol=1e-6, rtol=0)
    assert (model(ids)[0, 7:] - got[0, 7:]).abs().max() > 1e-4  # the whole row gives others


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
def test_gradients_are_those_of_the_pieces_alone(attention: Literal["sdpa", "matmul"]) -> None:
    """Packing invariant 6."""
    model = made(attention)
    rows = batch(model.settings.vocab_size)
    gradients: list[list[Tensor]] = []
    ways: list[Callable[[], Tensor]] = [
        lambda: model(*rows, Documents.of(LENGTHS, CPU)),
        lambda: alone(model, *rows),
    ]
    for way in ways:
        model.zero_grad()
        batch_loss(way()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@WAYS
@QUIET
def test_another_id_in_a_piece_changes_no_other_piece(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing invariant 6."""
    model = masking(way, monkeypatch)
    ids, *_ = batch(model.settings.vocab_size)
    documents = Documents.of(LENGTHS, CPU)
    with torch.no_grad():
        before = model(ids, documents=documents)
        ids[0, 9] = (ids[0, 9] + 1) % model.settings.vocab_size  # in the third piece, [8, 17)
        changed = (model(ids, documents=documents) != before).any(dim=-1)
    assert changed[0].nonzero().min() == 9
    assert changed[0].nonzero().max() <= 16
    assert not changed[1:].any()


def test_flex_attention_sees_what_the_pieces_see() -> None:
    """Packing invariant 6."""
    pytest.importorskip("torch.nn.attention.flex_attention", reason="came with torch 2.5")
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, 2, 128, 16, generator=generator) for _ in range(3))
    lengths = [np.array([40, 1, 87]), np.array([128]), np.array([127, 1])]
    documents = Documents.of(lengths, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow without a compiler
        got = flexible(q, k, v, 0.1, documents)
    for other in (
        apart(q, k, v, 0.1, documents, fused_attention),
        matmul_attention(q, k, v, 0.1, documents),
    ):
        torch.testing.assert_close(got, other, atol=2e-6, rtol=0)


def test_positions_begin_anew_in_each_piece() -> None:
    documents = Documents.of([np.array([2, 3]), np.array([5])], CPU)
    assert documents.position_BT.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert documents.piece_BT.tolist() == [[0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]
