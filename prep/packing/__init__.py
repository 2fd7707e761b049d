"""Packing: which pieces of documents share a row.

Pieces and groups from lengths alone, the ways to fit them, and the rows of a fitted group. Belongs
here: pure functions of lengths, the writing of fitted rows, rows made again from where they lie.
Never: texts, recipes, phases.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.packing import fitted, fitted_rows, laid_out, pieces
    from crystalmix.prep.packing.fits import FittedCounts
    from crystalmix.prep.packing.fitted import Fitted

__getattr__, __dir__ = lazy_names(__name__)
