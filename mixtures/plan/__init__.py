"""Plans of a recipe, before anything is built.

Rows, tokens, epochs, overlaps, sampling raw files, disk and hours. Never: writing.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.plan import outlook, plan
    from crystalmix.mixtures.plan.copies import CopiesPlan
    from crystalmix.mixtures.plan.outlook import Outlook
    from crystalmix.mixtures.plan.plan import PhasePlan

__getattr__, __dir__ = lazy_names(__name__)
