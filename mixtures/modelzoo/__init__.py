"""Model Zoo's view of rows, and the tokens of other trainers.

Reading its params.yaml, importing its shards, telling its loader a manifest; importing token ids
that Megatron and `datasets` store. Never: models or
checkpoints (see `train/modelzoo`).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.modelzoo import import_shards, import_tokens, train_input
    from crystalmix.mixtures.modelzoo.import_shards import Subset
    from crystalmix.mixtures.modelzoo.token_files import Kind
    from crystalmix.mixtures.modelzoo.train_input import Place, Reader

__getattr__, __dir__ = lazy_names(__name__)
