"""Fill-in-the-middle of our own.

On documents and on packed rows, cut between characters or tokens, with its account and spans.
Belongs here: choosing cuts, arranging pieces, sentinels. Never: the original's bit-exact dialect
(next room).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.fim import document_fim, row_fim, row_spans, segments
    from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings, Plan
    from crystalmix.prep.fim.row_fim import RowFim
    from crystalmix.prep.fim.row_spans import Account
    from crystalmix.prep.fim.segments import (
        Ints,
        Permuted,
        Piece,
        Plans,
        Segments,
        Sentinels,
        Writer,
    )

__getattr__, __dir__ = lazy_names(__name__)
