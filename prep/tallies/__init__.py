"""Tallies of documents by a value of theirs: domains of urls, licences.

Belongs here: what is counted over a source's `documents.parquet` because its description asks for
it, sealed beside the build's lookups, in no digest of documents or rows. Never: reading raw files.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.tallies import tally
    from crystalmix.prep.tallies.tally import Tally

__getattr__, __dir__ = lazy_names(__name__)
