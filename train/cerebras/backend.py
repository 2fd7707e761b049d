"""The backend that cstorch runs a phase on: a cluster of CS systems, or its own CPU.

cstorch keeps one backend per process, so each phase trains in a process of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.train.cerebras.csxapi_ import compiler_first, cstorch
from crystalmix.train.runfile.cluster import Cluster

HERE = Path(__file__).parents[2]  # where workers find this package


@dataclass(frozen=True)
class Target:
    """What a run trains on; micro_batch: rows that one system takes at once, all if None.

    roots: folders that the workers read.
    """

    kind: Literal["CSX", "CPU"]
    cluster: Cluster = field(default_factory=Cluster)
    micro_batch: int | None = None
    roots: tuple[Path, ...] = ()


def bring_up(target: Target, artifacts: Path, *, validate_only: bool = False) -> Any:  # noqa: ANN401
    """Start the one backend of this process; what it leaves behind goes to `artifacts`.

    With validate_only, a step is lowered here and no cluster is asked for anything.
    """
    api = cstorch()
    api.amp.set_half_dtype("bfloat16")
    if target.kind == "CPU":
        return api.backend("CPU", artifact_dir=str(artifacts))
    compiler_first()
    flags = api.backends.csx
    flags.performance.micro_batch_size = target.micro_batch
    flags.debug.fabric_type_blacklist = target.cluster.unwanted()
    if (level := target.cluster.levels()) is not None:
        flags.precision.optimization_level = level
    given = {"artifact_dir": str(artifacts), "validate_only": validate_only}
    if target.cluster.compile_dir is not None:
        given["compile_dir"] = target.cluster.compile_dir
    return api.backend("CSX", cluster_config=_config(target, validate_only), **given)


def _config(target: Target, validate_only: bool) -> Any:  # noqa: ANN401
    cluster = target.cluster
    given: dict[str, Any] = {
        "num_csx": cluster.num_csx,
        "num_workers_per_csx": cluster.num_workers_per_csx,
    }
    if not validate_only:
        given |= cluster.job()
        given["mount_dirs"] = _texts(*cluster.mount_dirs, *target.roots)
        given["python_paths"] = _texts(*cluster.python_paths, HERE)
    try:
        return cstorch().distributed.ClusterConfig(**given)
    except ValueError as error:
        raise RecipeError(f"runconfig: {error}; correct it in the run file") from None


def _texts(*paths: str | Path) -> Sequence[str]:
    return sorted({str(Path(path).resolve() if isinstance(path, Path) else path) for path in paths})
