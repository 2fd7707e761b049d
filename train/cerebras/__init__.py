"""The same training on cstorch: backend, loader, step, follower, proofs, lowering.

Belongs here: whatever imports `cerebras`. Never: Model Zoo, which needs no package of Cerebras.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.cerebras import lower, phase
    from crystalmix.train.cerebras.lower import Lowered

__getattr__, __dir__ = lazy_names(__name__)
