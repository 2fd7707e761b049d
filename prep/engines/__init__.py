"""Engines: who runs the work items of a stage.

An engine runs independent, picklable items and gives their results in order; what the results are
never depends on it. Here: processes of one machine (`runtime.workers.Fanout`), a Ray cluster, and
ranks that a scheduler started and that share a folder. Belongs here: how items reach processes and
how their loss is survived. Never: what an item does.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.engines import engine, ranks
    from crystalmix.prep.engines.engine import Engine, EngineSettings

__getattr__, __dir__ = lazy_names(__name__)
