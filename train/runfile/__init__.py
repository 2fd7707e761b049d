"""What a user writes to train.

Run file, its data sections, cluster settings, and the settings dataclasses. Never: doing anything
about it.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.runfile import data_sections, run_file
    from crystalmix.train.runfile.cluster import Cluster
    from crystalmix.train.runfile.settings import Run, RunSettings

__getattr__, __dir__ = lazy_names(__name__)
