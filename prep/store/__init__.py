"""Content-addressed artifacts: each stored once, under a key of what it follows from.

A key is the digest of an artifact's recipe: the digests of its inputs, its settings, the version of
its stage. Belongs here: where artifacts lie, who names them, what may be freed, the digests of raw
files as they are remembered, and what a build's command said. Never: what an artifact holds, and
how it is made. Writers need no lock: equal keys mean equal content, and every file is put whole
under its name.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.store import digests, rates, reuse, store, unchanged
    from crystalmix.prep.store.digests import Remembered
    from crystalmix.prep.store.rates import Pace
    from crystalmix.prep.store.store import Folders, Store

__getattr__, __dir__ = lazy_names(__name__)
