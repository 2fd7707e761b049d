"""`cm.Ledger` and `cm.fed`: a ledger for a training loop of your own."""

from pathlib import Path

from crystalmix.train.api.checks import Place
from crystalmix.train.api.opened import Phase
from crystalmix.train.loader.caller_ledger import CallerLedger, Fed, fed

__all__ = ["Fed", "Ledger", "fed"]


class Ledger(CallerLedger):
    """The ledger of one phase, kept by a loop of your own (one process, rank 0, keeps it).

    `record(step, cm.fed(ids, mask, labels), loss=...)` after each step, `seal(checkpoint)` with
    each checkpoint of yours; `next_step` is where to go on. `cm.open(folder)` is then a run as any
    other. folder: of the run. step: go back to the seal at this step (the newest by default).
    Raises StaleError for a folder of another run.
    """

    def __init__(self, folder: Place, phase: Phase, *, step: int | None = None) -> None:
        super().__init__(Path(folder), phase.manifest, phase.build, step)
