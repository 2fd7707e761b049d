"""Which mixtures small models are to compare.

The spec, design, trials, factors, the pool of rows they share, the small manifests. Belongs here:
everything of an ablation before a model is trained. Never: torch.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.ablations import (
        factor_trials,
        pool_of_build,
        pool_recipe,
        proxy_tokenizer,
        published_mixtures,
        small_manifest,
        spec,
        trials,
    )
    from crystalmix.mixtures.ablations.design import caps
    from crystalmix.mixtures.ablations.pool_of_build import Reused
    from crystalmix.mixtures.ablations.spec import Ablation
    from crystalmix.mixtures.ablations.trials import Ground, Trial

__getattr__, __dir__ = lazy_names(__name__)
