"""Gradients of replicas, added up over the processes while the backward pass goes on.

In buckets that never change, begun in one order: torch's DDP sorts its own anew after the first
step of a process, so that with more than two a resume would add in another order.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 1 << 22  # numbers that are added up at once


class GradientSum:
    """Adds up the gradients of parameters over all processes.

    `begin` before the last backward pass of a step, `end` after it. Buckets follow the parameters
    from the last to the first, as the backward pass finishes them; each is sent when all of its
    gradients and the bucket before it are there.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._buckets = _buckets(reversed(list(parameters)))
        self._waiting: list[set[nn.Parameter]] = []
        self._sent: list[tuple[Sequence[Tensor], Tensor, dist.Work | None]] = []
        self._active = False
        self._place = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        for parameter in self._place:
            parameter.register_post_accumulate_grad_hook(self._finished)

    def begin(self) -> None:
        """Send buckets from here on as they are finished."""
        self._waiting = [set(bucket) for bucket in self._buckets]
        self._sent = []
        self._active = True

    def end(self) -> None:
        """Wait for all sums and put them in the gradients' place."""
        while len(self._sent) < len(self._buckets):  # of parameters that had no part in the loss
            self._send()
        self._active = False
        for gradients, whole, work in self._sent:
            if work is not None:
                work.wait()
            pieces = whole.split([gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        self._sent = []

    def _finished(self, parameter: Tensor) -> None:
        if not self._active:
            return
        assert isinstance(parameter, nn.Parameter)
        self._waiting[self._place[parameter]].discard(parameter)
        while len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [p.grad for p in bucket if p.grad is not None]
        if not gradients:
            self._sent.append((gradients, torch.empty(0), None))
            return
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        self._sent.append((gradients, whole, dist.all_reduce(whole, async_op=True)))


def _buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Cut parameters into buckets of BUCKET numbers or the few more of the last parameter."""
    buckets: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if size >= BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
