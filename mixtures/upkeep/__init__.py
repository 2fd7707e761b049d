"""Upkeep of a build's store: what is named, what may be freed, what is erased on request.

Belongs here: removal of artifacts that nothing names, and of documents from artifacts. Never: how
an artifact is made or named.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.upkeep import purge
    from crystalmix.mixtures.upkeep.collect import Garbage, collect
    from crystalmix.mixtures.upkeep.purge import Plan

__getattr__, __dir__ = lazy_names(__name__)
