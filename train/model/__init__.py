"""The model as mathematics.

Decoder, head and loss, optimiser and schedule, and how processes add up. Belongs here: torch
without files. Never: manifests, folders, settings files.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.model import crystal, gradient_sum, optimizer, processes
    from crystalmix.train.model.crystal import Crystal, ModelSettings
    from crystalmix.train.model.documents import Documents
    from crystalmix.train.model.gradient_sum import GradientSum
    from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings
    from crystalmix.train.model.processes import World

__getattr__, __dir__ = lazy_names(__name__)
