"""Object stores: builds and runs that are kept behind urls, copied whole or brought as needed.

Belongs here: requests to a store, the index of what is kept there, copies, local mirrors of them
whole or by ranges, and ranks that meet at a url.
Never: what a file means, but for the suffix of files that wait until somebody opens them.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.objects import copies
    from crystalmix.prep.objects.ahead import Ahead
    from crystalmix.prep.objects.mirror import bring, is_mirrored, mirror
    from crystalmix.prep.objects.ranges import Ranges
    from crystalmix.prep.objects.ranks_apart import RanksApart
    from crystalmix.prep.objects.remote import checked, content
    from crystalmix.prep.objects.waiting import cache_root, ranges_of

__getattr__, __dir__ = lazy_names(__name__)
