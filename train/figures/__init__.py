"""Pictures from plain numbers: charts, triangles, a run's plot.

Belongs here: matplotlib. Never: reading a folder that is not handed in.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.figures import charts, mixture_plot, results_plot, run_plot, ternary
    from crystalmix.train.figures.charts import FrontPoint, Mark, Panel
    from crystalmix.train.figures.flows import Flow, flow
    from crystalmix.train.figures.mixture_plot import Copies, Lengths

__getattr__, __dir__ = lazy_names(__name__)
