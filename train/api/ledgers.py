"""`cm.Ledger` and `cm.fed`: a ledger for a training loop of your own."""

from pathlib import Path

from crystalmix.train.api.checks import Place
from crystalmix.train.api.opened import Phase
from crystalmix.train.loader.caller_ledger import CallerLedger
from crystalmix.train.loader.fed import Fed, fed

__all__ = ["Fed", "Ledger", "fed"]


class Ledger(CallerLedger):
    """The ledger of one phase, kept by a loop of your own.

    `feed(batch)` what the model is given, `record(step, loss=...)` after each step,
    `seal(checkpoint)` with each checkpoint of yours; `next_step` and `checkpoint` are where to go
    on. `cm.open(folder)` is then a run as any other. folder: of the run. step: go back to the seal
    at this step (the newest by default). distributed: every rank of torch.distributed keeps it,
    rank 0 writes. Raises StaleError for a folder of another run.
    """

    def __init__(
        self, folder: Place, phase: Phase, *, step: int | None = None, distributed: bool = False
    ) -> None:
        group = None
        if distributed:
            from crystalmix.train.loader.ranks import ranks

            group = ranks()
        super().__init__(Path(folder), phase.manifest, phase.build, step, group)
