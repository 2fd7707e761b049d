"""Manifests sealed over rows that builds hold already.

Several mixtures over one build, and builds made apart as one. Belongs here: what seals phases anew
and links rows. Never: reading raw files, making or changing rows.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.resealing import merge, mix

__getattr__, __dir__ = lazy_names(__name__)
