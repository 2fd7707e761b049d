"""Model Zoo's view of a run.

Writing its params.yaml, harvesting its runs, converting its checkpoints and names. Never:
`cerebras` packages.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.modelzoo import convert_checkpoint, harvest, write_params
    from crystalmix.train.modelzoo.harvest import Harvest

__getattr__, __dir__ = lazy_names(__name__)
