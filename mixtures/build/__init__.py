"""The stages that carry a recipe to sealed manifests.

Scan, upsample, tokenise, pack, row-level FIM, shuffle, seal; one file a stage, which holds the
stage's work item and its settings for the receipt, and fills in its account, which `accounts` has
for readers, too. Belongs here: orchestration and receipts of a build. Never: the doing itself (that
is `prep`), and no stage imports another stage.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.build import (
        accounts,
        build,
        context,
        drop_report,
        lookups,
        pack,
        row_fim,
        scan,
        seal,
        shared_texts,
        shuffle,
        tokenise,
        upsample,
    )
    from crystalmix.mixtures.build.context import Context, Folder
    from crystalmix.mixtures.build.lookups import Lookups
    from crystalmix.mixtures.build.scan import Work
    from crystalmix.mixtures.build.seal import Basis
    from crystalmix.mixtures.build.shared_texts import Findings
    from crystalmix.mixtures.build.view import adopt_all, lasting, remember, state_of

__getattr__, __dir__ = lazy_names(__name__)
