"""Ablations, carried out and concluded.

Proxies, stacks, measuring, tables, conclusions, report, and the recipe that follows. Never: the
design (see `mixtures/ablations`), the statistics (see `mixtures/laws`).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.ablations import (
        ablate,
        costs,
        export_recipe,
        factor_results,
        report,
        table_mixture,
        tables,
    )
    from crystalmix.train.ablations.costs import Cost
    from crystalmix.train.ablations.report import Report
    from crystalmix.train.ablations.results import Insight
    from crystalmix.train.ablations.table_mixture import TableMixture

__getattr__, __dir__ = lazy_names(__name__)
