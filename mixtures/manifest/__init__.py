"""The sealed plan of a phase and the two orders that it can fix; from it every row of every step.

Belongs here: code that needs a manifest alone. Never: building, reading shards, training. It
imports `prep/runtime` only, so that a loader on a cluster needs nothing else.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.manifest import (
        build_folder,
        cerebras_order,
        coverage,
        exact_order,
        manifest,
        opened,
        purged,
        report,
        rows_of_steps,
        sealed_receipts,
    )
    from crystalmix.mixtures.manifest.build_folder import BuildFolder
    from crystalmix.mixtures.manifest.cerebras_order import Zeros, ZooOrder, ZooSettings
    from crystalmix.mixtures.manifest.coverage import Draws, Reads
    from crystalmix.mixtures.manifest.exact_order import Interleave
    from crystalmix.mixtures.manifest.manifest import (
        Manifest,
        ManifestPart,
        PackedAs,
        PartShard,
        RowRefs,
    )
    from crystalmix.mixtures.manifest.opened import OpenedRows, in_build

__getattr__, __dir__ = lazy_names(__name__)
