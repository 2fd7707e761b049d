"""Rows for any training loop, and a ledger that any loop can keep.

Belongs here: what stands between a manifest and a training script that is not ours; numpy alone,
but for `datasets`, which needs torch. Never: a model, a run file, our own trainer.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.loader import batches, caller_ledger
    from crystalmix.train.loader.batches import Batch, Share
    from crystalmix.train.loader.caller_ledger import CallerLedger, Fed
    from crystalmix.train.loader.datasets import RowDataset, StepDataset

__getattr__, __dir__ = lazy_names(__name__)
