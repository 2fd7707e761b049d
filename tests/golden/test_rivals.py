"""The rivals of the benchmark compute what our model computes, so that they may be measured."""

import pytest
import torch
from torch.testing import assert_close

from crystalmix.train.model.crystal import batch_loss, row_losses
from helpers.crystals import TINY, fresh
from helpers.rivals import adamw, eager, plain


@pytest.mark.parametrize("kind", ["eager", "nanochat", "litgpt"])
def test_a_rival_has_our_logits_and_gradients(kind: str) -> None:
    ours = fresh(TINY)
    make = {"eager": eager, "nanochat": plain, "litgpt": lambda m: plain(m, fused=True)}
    rival = make[kind](ours)
    rows = torch.arange(3 * 41).view(3, 41) * 7 % TINY.vocab_size
    ids, labels = rows[:, :-1], rows[:, 1:]
    assert_close(rival(ids), ours(ids), atol=2e-5, rtol=1e-5)
    if kind == "eager":  # its loss has one label less a row
        labels, ids = ids[:, 1:], ids[:, :-1]
        rival.loss(rows[:, :-1], rows[:, :-1]).backward()
    else:
        rival.loss(ids, labels).backward()
    batch_loss(row_losses(ours(ids), labels, torch.ones_like(labels))).backward()
    norms = [
        float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        for model in (rival, ours)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert sum(len(g["params"]) for g in adamw(rival).param_groups) == len([*rival.parameters()])
