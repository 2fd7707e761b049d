"""Filters: judgements on a text or its digest, each with the reason for a drop.

Belongs here: opt-out lists, sampling, the train/valid split, overlap with evaluation files, exact
and near duplicates, and how often what stays is taken. Never: reading files of a source (only lists
and evaluation files), writing documents.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.filters import (
        decontaminate,
        entries,
        exact_duplicates,
        near_duplicates,
        near_pairs,
        upsample,
    )
    from crystalmix.prep.filters.counts import CopyCounts, IndexCounts
    from crystalmix.prep.filters.entries import Entry, Names
    from crystalmix.prep.filters.exact_duplicates import Duplicates, Sides
    from crystalmix.prep.filters.near_duplicates import Stored
    from crystalmix.prep.filters.near_pairs import Bands
    from crystalmix.prep.filters.opt_out import OptOut
    from crystalmix.prep.filters.sample import Split
    from crystalmix.prep.filters.screen import Screen, Selection
    from crystalmix.prep.filters.sorted_lists import Grouped
    from crystalmix.prep.filters.upsample import Upsample

__getattr__, __dir__ = lazy_names(__name__)
