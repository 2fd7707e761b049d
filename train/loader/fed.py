"""What a step was fed, digested from the tensors themselves.

Small enough to be gathered from all ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.record.ledger import PartLoss

CHANNELS = ("ids", "mask", "labels")


@dataclass(frozen=True)
class Fed:
    """Rows that were fed, in the order of their slots.

    digests: 16 bytes for each row, xxh3-128 over its ids, mask and labels. tokens: of each row,
    labels that count, int64. losses: of each row, mean nll of those labels in nats, None if it is
    not known.
    """

    digests: bytes
    tokens: NDArray[np.int64]
    losses: NDArray[np.float64] | None = None

    @property
    def digest(self) -> str:
        """The digest of the rows as one batch."""
        return xxhash.xxh3_128_hexdigest(self.digests)

    def loss(self, rows: Any = slice(None)) -> float | None:  # noqa: ANN401  an index of numpy
        """Return the mean nll of the labels that count in some rows, None where it is not known."""
        if self.losses is None or not (count := int(self.tokens[rows].sum())):
            return None
        counted = self.tokens[rows] > 0
        return float((self.losses[rows] * self.tokens[rows])[counted].sum() / count)

    def part_entries(self, part: NDArray[np.int64], names: Sequence[str]) -> tuple[PartLoss, ...]:
        """Return the ledger's entries of the parts that rows are of; part: index of each row's."""
        return tuple(
            PartLoss(name, int(here.sum()), int(self.tokens[here].sum()), self.loss(here))
            for number, name in enumerate(names)
            if (here := part == number).any()
        )


def fed(
    ids: Any,  # noqa: ANN401  an array, a tensor, or all three by name
    mask: Any = None,  # noqa: ANN401
    labels: Any = None,  # noqa: ANN401
    *,
    losses: Any = None,  # noqa: ANN401
) -> Fed:
    """Digest the arrays or tensors (rows, msl) that a step was fed, on any device.

    ids: those, or a sample or batch that has all three by name. losses: (rows,), the mean nll of
    each row's labels that count, in nats, for the losses of parts.
    """
    if mask is None and labels is None:
        by_name = isinstance(ids, Mapping)
        ids, mask, labels = (ids[name] if by_name else getattr(ids, name) for name in CHANNELS)
    elif mask is None or labels is None:
        raise UsageError("fed: needs ids, mask and labels, or one batch that has all three")
    channels = [_host(array, np.int32) for array in (ids, mask, labels)]
    shapes = {channel.shape for channel in channels}
    if len(shapes) != 1 or channels[0].ndim != 2:
        listed = ", ".join(str(channel.shape) for channel in channels)
        raise UsageError(f"fed: ids, mask and labels must be (rows, msl), got {listed}")
    rows = np.stack(channels, axis=1)
    digests = b"".join(xxhash.xxh3_128_digest(row.data) for row in rows)  # rows: (n, 3, msl) int32
    means = None if losses is None else _host(losses, np.float64)
    return Fed(digests, rows[:, 1].sum(1, dtype=np.int64), means)


def joined(shares: Sequence[Fed]) -> Fed:
    """Return what several micro-batches or ranks were fed, one after the other."""
    if len(shares) == 1:
        return shares[0]
    losses = [share.losses for share in shares if share.losses is not None]
    return Fed(
        b"".join(share.digests for share in shares),
        np.concatenate([np.empty(0, np.int64), *(share.tokens for share in shares)]),
        np.concatenate(losses) if losses and len(losses) == len(shares) else None,
    )


def _host(value: Any, dtype: Any) -> NDArray[Any]:  # noqa: ANN401  an array or a tensor
    """Return an array or a tensor as an array of a type on the host.

    Raises UsageError for numbers that int32 would cut, so that no other row has their digest.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    array = np.asarray(value)
    with np.errstate(invalid="ignore"):
        numbers = array.astype(dtype, copy=False)
    if dtype is np.int32 and array.dtype != np.int32 and not np.array_equal(numbers, array):
        raise UsageError("fed: holds a number that is no int32; feed the rows as they came")
    return numbers
