"""Steps of a manifest through model and optimiser.

Session, loop, batches, gradients, placement, checkpoints, claims; and the forecast of all that.
Never: another backend (see `train/cerebras`).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.trainer import (
        checkpoint,
        claim,
        forecast,
        gradients,
        session,
        task_results,
    )
    from crystalmix.train.trainer.batches import Batch, Batches
    from crystalmix.train.trainer.checkpoint import Checkpoints
    from crystalmix.train.trainer.forecast import PhaseForecast
    from crystalmix.train.trainer.trainer import Outcome, Trainer

__getattr__, __dir__ = lazy_names(__name__)
