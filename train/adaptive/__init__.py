"""Adaptive mixtures: windows of steps whose shares follow from the ledger so far.

The policies (pure functions of what was recorded), the manifest of a window, the run of windows,
the check that each follows, and the simulation of a policy on finished runs. Never: a share that is
not sealed before its window's first step.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.adaptive import check, simulate
    from crystalmix.train.adaptive.policy import read_policy
    from crystalmix.train.adaptive.run_windows import train_adaptive

__getattr__, __dir__ = lazy_names(__name__)
