"""Settings of a Wafer-Scale Cluster, read from a run file's `runconfig` in Model Zoo's key names.

They say where and on how many systems a run goes, so that none of them changes what is learnt: a
run may go on with others.
"""

from dataclasses import fields
from typing import Literal

from pydantic.dataclasses import dataclass

from crystalmix.prep.runtime.constraints import Count
from crystalmix.prep.runtime.types import Content


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Describe a cluster; None and () leave a choice to cstorch.

    `fabric` demands systems of that kind. `precision_opt_level` -1 is Model Zoo's word for unset.
    The rows of a micro-batch are `micro_batch` of the run itself.
    """

    num_csx: Count = 1
    num_workers_per_csx: Count = 1
    fabric: Literal["cs2", "cs3"] | None = None
    precision_opt_level: Literal[-1, 0, 1, 2] | None = None
    mount_dirs: tuple[str, ...] = ()
    python_paths: tuple[str, ...] = ()
    mgmt_address: str | None = None
    mgmt_namespace: str | None = None
    credentials_path: str | None = None
    compile_dir: str | None = None
    job_labels: tuple[str, ...] = ()
    job_priority: Literal["p1", "p2", "p3"] | None = None
    job_time_sec: Count | None = None

    def levels(self) -> int | None:
        """Return the precision level to ask for, None for cstorch's own."""
        level = self.precision_opt_level
        return None if level is None or level < 0 else level

    def unwanted(self) -> list[str] | None:
        """Return the kinds of systems that the run must not get."""
        return None if self.fabric is None else [x for x in ("cs2", "cs3") if x != self.fabric]

    def job(self) -> Content:
        """Return what names the cluster and the job, as cstorch's ClusterConfig takes it."""
        names = ("mgmt_address", "mgmt_namespace", "credentials_path", "job_priority")
        entries = {name: getattr(self, name) for name in (*names, "job_time_sec")}
        entries["job_labels"] = list(self.job_labels)
        return {name: value for name, value in entries.items() if value}


KEYS = tuple(field.name for field in fields(Cluster))
