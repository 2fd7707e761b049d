"""What a run writes and how it is read again.

The run's folder, ledger, skips, metrics, and the SQL views over build and run. Belongs here: the
formats of a run. Never: torch; a run can be looked at without it.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.record import (
        later,
        ledger,
        metrics,
        proof,
        run_folder,
        seal,
        skips,
        views,
    )
    from crystalmix.train.record.ledger import Consumed, Ledger, PartLoss, Step
    from crystalmix.train.record.metrics import Metrics, MetricsSettings
    from crystalmix.train.record.run_folder import CheckpointState, Claim, PhaseFolder, SealedLedger
    from crystalmix.train.record.views import Traced

__getattr__, __dir__ = lazy_names(__name__)
