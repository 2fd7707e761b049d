"""Rows for any training loop, and a ledger that any loop can keep.

Belongs here: what stands between a manifest and a training script that is not ours; numpy alone,
but for `datasets` and the ranks of torch.distributed, which need torch. Never: a model, a run file,
our own trainer.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.loader import batches
    from crystalmix.train.loader.batches import Batch, Share
    from crystalmix.train.loader.caller_ledger import CallerLedger
    from crystalmix.train.loader.datasets import RowDataset, StepDataset
    from crystalmix.train.loader.fed import Fed, fed
    from crystalmix.train.loader.ranks import ranks
    from crystalmix.train.loader.row_pieces import RowPieces

__getattr__, __dir__ = lazy_names(__name__)
