"""Head and loss in one: the losses of rows from the last hidden states, without keeping logits.

Logits are the largest tensor of a step, vocabulary numbers for each position, in up to four copies
between the head and its gradient. Here some positions at a time become logits, losses and, in the
same place, the gradient of the logits, whose two products are taken at once: the multiplications
are those of the plain way, and a batch's logits are never held.
"""
# ruff: noqa: N803, N806 -- names carry shapes, as in `model`: N positions, C of them at a time

from typing import Any

import torch
from torch import Tensor

CHUNK = 2048  # positions whose logits a CPU holds at once; four times as many elsewhere
BLOCK_BYTES = 1 << 20  # of them, what a CPU works on at once: what its cache holds


def head_losses(x_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return nll_BT, as `row_losses(functional.linear(x, weight), labels, mask)` gives it.

    Products are in autocast's dtype inside autocast. They may be summed and scaled to a loss, all
    alike: RuntimeError where the gradients that come back differ.
    """
    flat = (x_BTD.flatten(0, 1), weight_VD, labels_BT.flatten().long(), mask_BT.flatten())
    return _HeadLosses.apply(*flat).view(labels_BT.shape)


class _HeadLosses(torch.autograd.Function):
    """Losses with the gradient of their sum; what comes back from the loss only scales it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's
        x_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        mask_N: Tensor,
    ) -> Tensor:
        dtype, wide = _dtypes(x_ND)
        nll_N = torch.empty(len(x_ND), dtype=wide, device=x_ND.device)
        needs_gradient = any(ctx.needs_input_grad)
        dx_ND = torch.empty_like(x_ND) if needs_gradient else None
        dw_VD = torch.zeros_like(weight_VD) if needs_gradient else None
        with torch.autocast(x_ND.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            size = CHUNK if x_ND.device.type == "cpu" else 4 * CHUNK
            for first in range(0, len(x_ND), size):
                here = slice(first, first + size)
                x_CD = x_ND[here].to(dtype)
                logits_CV = x_CD @ w_VD.T
                nll_N[here] = _losses(logits_CV, labels_N[here], mask_N[here], needs_gradient)
                if dx_ND is not None and dw_VD is not None:
                    dx_ND[here] = logits_CV @ w_VD
                    _add_product(dw_VD, logits_CV.T, x_CD)
        ctx.save_for_backward(dx_ND, dw_VD)
        return nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient_N,) = gradients
        # of a sum it is one number, seen N times; else all N are looked at
        if any(gradient_N.stride()) and not bool((gradient_N == gradient_N[0]).all()):
            raise RuntimeError("losses of rows may only be summed and scaled, all of them alike")
        dx_ND, dw_VD = ctx.saved_tensors
        return dx_ND.mul_(gradient_N[0]), dw_VD.mul_(gradient_N[0]), None, None


def _dtypes(x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of products, and the one of softmax and losses, at least float32."""
    kind, dtype = x.device.type, x.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    return dtype, torch.promote_types(x.dtype, torch.float32)


def _losses(logits_CV: Tensor, labels_C: Tensor, mask_C: Tensor, needs_gradient: bool) -> Tensor:
    """Return the masked losses of logits; leave the gradient of their sum in the logits' place."""
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    count, vocabulary = logits_CV.shape
    size = count
    if logits_CV.device.type == "cpu":
        size = max(1, BLOCK_BYTES // (vocabulary * wide.itemsize))
    nll_C = torch.empty(count, dtype=wide, device=logits_CV.device)
    for first in range(0, count, size):
        here = slice(first, first + size)
        labels, mask = labels_C[here, None], mask_C[here, None]
        logs = logits_CV[here].log_softmax(-1, dtype=wide)
        nll_C[here] = (logs.gather(1, labels) * -mask)[:, 0]
        if needs_gradient:
            shares = logs.exp_()
            shares.scatter_add_(1, labels, torch.full_like(shares[:, :1], -1.0))
            logits_CV[here] = shares.mul_(mask)
    return nll_C


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a sum that may be of a wider dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
