"""The processes of a caller's loop: one of its own, or the ranks of torch.distributed."""

from typing import Any


class Ranks:
    """Processes that feed one batch together, here one alone; the first, rank 0, writes."""

    rank = 0

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401  any object
        """Return the values of all ranks, by rank, to rank 0; nothing to the others."""
        return [value]

    def share(self, value: Any) -> Any:  # noqa: ANN401
        """Return rank 0's value to all."""
        return value


class TorchRanks(Ranks):
    """The ranks of torch.distributed's default group, which is joined already."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        self.rank = dist.get_rank()
        self._world = dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Return the values of all ranks, by rank, to rank 0; nothing to the others."""
        values: list[Any] = [None] * self._world
        self._dist.gather_object(value, values if self.rank == 0 else None)
        return values if self.rank == 0 else []

    def share(self, value: Any) -> Any:  # noqa: ANN401
        """Return rank 0's value to all."""
        values = [value]
        self._dist.broadcast_object_list(values)
        return values[0]


def ranks() -> Ranks:
    """Return the ranks of torch.distributed where it is joined, else this process alone."""
    import torch.distributed as dist

    return TorchRanks() if dist.is_available() and dist.is_initialized() else Ranks()
