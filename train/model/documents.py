"""Documents in rows: attention that does not run from one into another, and their positions.

On a CPU each piece of a document is attended to on its own, which costs less than the whole row; on
a GPU FlexAttention leaves out the blocks between pieces. Names of tensors as in `crystal`.
"""
# ruff: noqa: N803, N806 -- names carry shapes

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Documents:
    """The pieces of documents in the rows of a forward pass.

    lengths: of each row's pieces, padding included. piece_BT: the piece a position is of, counted
    over all rows. position_BT: its place there.
    """

    lengths: tuple[tuple[int, ...], ...]
    piece_BT: Tensor  # noqa: N815
    position_BT: Tensor  # noqa: N815

    @classmethod
    def of(cls, lengths: Sequence[NDArray[np.int64]], device: torch.device) -> "Documents":
        """Return the documents of rows with pieces of these lengths, which add up to a row."""
        every = torch.from_numpy(np.concatenate(lengths))
        piece = torch.repeat_interleave(torch.arange(len(every)), every)
        position = torch.arange(len(piece)) - (every.cumsum(0) - every)[piece]
        rows = tuple(tuple(row.tolist()) for row in lengths)
        shaped = (x.view(len(rows), -1).to(device) for x in (piece, position))
        return cls(rows, *shaped)

    @cached_property
    def block_mask(self) -> Any:  # noqa: ANN401  torch's BlockMask
        """FlexAttention's mask: causal, within a piece; made once for all layers."""
        from torch.nn.attention.flex_attention import create_block_mask

        piece_BT = self.piece_BT
        rows, length = piece_BT.shape

        def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (piece_BT[row, query] == piece_BT[row, key]) & (query >= key)

        return create_block_mask(seen, rows, None, length, length, device=str(piece_BT.device))


def _apart(
    q_BNTK: Tensor,
    k_BNTK: Tensor,
    v_BNTK: Tensor,
    scale: float,
    documents: Documents,
    attend: Attend,
) -> Tensor:
    """Attend causally within each piece, one after the other, by `attend`."""
    rows: list[Tensor] = []
    for lengths, *row in zip(documents.lengths, q_BNTK, k_BNTK, v_BNTK, strict=True):
        parts = zip(*(x_NTK[None].split(lengths, dim=2) for x_NTK in row), strict=True)
        mixed = [attend(q_1NLK, k_1NLK, v_1NLK, scale) for q_1NLK, k_1NLK, v_1NLK in parts]
        rows.append(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2))
    return torch.cat(rows)


# lengths differ from row to row: a compiler would make one program for each
apart = cast("Callable[..., Tensor]", torch.compiler.disable(_apart))


def flexible(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, scale: float, documents: Documents
) -> Tensor:
    """Attend causally within pieces by FlexAttention, compiled on a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = _compiled() if q_BNTK.device.type == "cuda" else flex_attention
    return attention(q_BNTK, k_BNTK, v_BNTK, block_mask=documents.block_mask, scale=scale)


_COMPILED: list[Any] = []


def _compiled() -> Any:  # noqa: ANN401  what torch.compile gives
    """Return FlexAttention compiled, once in a process."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _COMPILED:
        _COMPILED.append(torch.compile(flex_attention, dynamic=False))
    return _COMPILED[0]
