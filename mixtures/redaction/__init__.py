"""Documents of lists in a build: where they stand, and views of the build without them.

Belongs here: from entries to documents to rows, tombstones, erasure. Never: runs, ledgers, steps
that were done (`train/audit`).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.redaction import check, erased_names, find_documents, redact
    from crystalmix.mixtures.redaction.find_documents import Dropped, Found, Hits
    from crystalmix.mixtures.redaction.near_copies import NearSearch
    from crystalmix.mixtures.redaction.placed import DomainRows, Drawn, Folder

__getattr__, __dir__ = lazy_names(__name__)
