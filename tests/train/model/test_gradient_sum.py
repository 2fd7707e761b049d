"""Sums of gradients: what an all-reduce of each gives, sent while the backward pass goes on."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crystalmix.train.model import gradient_sum
from crystalmix.train.model.gradient_sum import GradientSum
from helpers import worlds

WIDTH, LAYERS = 8, 3


class Marked(nn.Module):
    """Passes on its input; tells when the gradient comes back to it."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def forward(self, x: Tensor) -> Tensor:
        x.register_hook(lambda _: self.events.append("back at the first layer"))
        return x


def model(events: list[str]) -> nn.Sequential:
    """Linear layers behind a first one; the marker is between it and the others."""
    torch.manual_seed(3)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return nn.Sequential(layers[0], Marked(events), *layers[1:])


def summed(out: Path) -> None:
    """As one of several ranks: add up a step of two micro-batches; write what was seen."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    gradient_sum.BUCKET = WIDTH * WIDTH  # each layer's kernel and bias
    events: list[str] = []
    ours, plain = model(events), model([])
    unused = nn.Parameter(torch.ones(2))  # has no part in the loss
    adding = GradientSum([unused, *ours.parameters()])
    sent = dist.all_reduce

    def heard(tensor: Tensor, **settings: bool) -> dist.Work | None:
        events.append(f"{tensor.numel()} numbers")
        return sent(tensor, **settings)

    dist.all_reduce = heard
    for last in (False, True):
        rows = torch.full((2, WIDTH), float(rank + 1 + last))
        if last:
            adding.begin()
        ours(rows).square().sum().backward()
        plain(rows).square().sum().backward()
    adding.end()
    dist.all_reduce = sent
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        dist.all_reduce(other.grad)
        assert torch.allclose(one.grad, other.grad, rtol=1e-6)
    assert unused.grad is None
    (out / str(rank)).write_text("\n".join(events))
    dist.destroy_process_group()


def test_sums_are_those_of_each_and_begin_before_the_backward_pass_ends(tmp_path: Path) -> None:
    assert worlds.end(worlds.begin(3, summed, tmp_path)) == [0, 0, 0]
    wanted = ["back at the first layer"]  # of the first micro-batch, which sends nothing
    wanted += [f"{WIDTH * WIDTH + WIDTH} numbers"] * (LAYERS - 1)
    wanted += ["back at the first layer", f"{WIDTH * WIDTH + WIDTH} numbers"]
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text().splitlines() == wanted
