"""The backend that cstorch runs a phase on: a cluster of CS systems, or its own CPU.

cstorch keeps one backend per process, so each phase trains in a process of its own. This module is
the one door to `cerebras.pytorch`, which only the environment of the extra `csx` has. It has no
type stubs, so it is passed on as one untyped object.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.train.runfile.cluster import Cluster

PACKAGE = Path(__file__).resolve().parents[2]  # the folder of `crystalmix` itself
VERSION = "2.10.0"  # the release whose behaviour the tests prove
MISSING = (
    f"cerebras-pytorch is not installed; install crystalmix with its extra `csx` "
    f"(cerebras-pytorch {VERSION}, Linux x86-64, CPython 3.11; `make csx` makes its environment)"
)


def demand() -> None:
    """Raise InputError, which says what to install, where the extra is missing; import nothing."""
    if importlib.util.find_spec("cerebras") is None:
        raise InputError(MISSING)


def cstorch() -> ModuleType:
    """Return the module `cerebras.pytorch`; InputError says what to install where it is missing."""
    return module("cerebras.pytorch")


def module(name: str) -> ModuleType:
    """Return a module of Cerebras by its full name; InputError where the extra is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "cerebras":
            raise
        raise InputError(MISSING) from None


def compiler_first() -> None:
    """Put the real torch-cirh-opt before the console script of that name on PATH.

    The script drops the exit code of what it starts, so that a step which can't be lowered would
    leave an empty file and look like a success.
    """
    library = Path(str(module("cerebras.pytorch.lib").__file__)).parent
    paths = [str(library), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    os.environ["PATH"] = os.pathsep.join(paths)


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
    options = {"artifact_dir": str(artifacts), "validate_only": validate_only}
    if target.cluster.compile_dir is not None:
        options["compile_dir"] = target.cluster.compile_dir
    return api.backend("CSX", cluster_config=_config(target, artifacts, validate_only), **options)


def importable(artifacts: Path, package: Path = PACKAGE) -> Path:
    """Return the folder in which workers find a folder `crystalmix`, this package.

    The folder of an editable checkout may have another name; then the artifacts get a link to it,
    which workers can follow where the checkout is mounted too.
    """
    if package.name == "crystalmix":
        return package.parent
    link = artifacts / "python" / "crystalmix"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(package, target_is_directory=True)
    return link.parent


def _config(target: Target, artifacts: Path, validate_only: bool) -> Any:  # noqa: ANN401
    cluster = target.cluster
    options: dict[str, Any] = {
        "num_csx": cluster.num_csx,
        "num_workers_per_csx": cluster.num_workers_per_csx,
    }
    if not validate_only:
        options |= cluster.job()
        options["mount_dirs"] = _texts(*cluster.mount_dirs, *target.roots, PACKAGE)
        options["python_paths"] = _texts(*cluster.python_paths, importable(artifacts))
    try:
        return cstorch().distributed.ClusterConfig(**options)
    except ValueError as error:
        raise RecipeError(f"runconfig: {error}; correct it in the run file") from None


def _texts(*paths: str | Path) -> Sequence[str]:
    return sorted({str(Path(path).resolve() if isinstance(path, Path) else path) for path in paths})
