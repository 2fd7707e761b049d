"""Cards of builds and runs: plain text, hub cards, Croissant, SPDX, OpenLineage, the EU's summary.

Belongs here: what is published of a build or run, from its files and what its author states. Never:
an invented value, writing into a build or run.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.report import cards, facts
    from crystalmix.train.report.card_file import CardFile
    from crystalmix.train.report.cards import Card

__getattr__, __dir__ = lazy_names(__name__)
