"""The one door to `cerebras.pytorch`, which is there only in the environment of the extra `csx`.

It has no type stubs, so it is passed on as one untyped object.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from crystalmix.prep.runtime.errors import InputError

VERSION = "2.10.0"  # the release whose behaviour the tests prove
MISSING = (
    f"cerebras-pytorch is not installed; install crystalmix with its extra `csx` "
    f"(cerebras-pytorch {VERSION}, Linux x86-64, CPython 3.11; `make csx` makes its environment)"
)


def demand() -> None:
    """Raise InputError, which says what to install, where the extra is missing; import nothing."""
    if importlib.util.find_spec("cerebras") is None:
        raise InputError(MISSING)


def cstorch() -> Any:  # noqa: ANN401  a module without types
    """Return the module `cerebras.pytorch`; InputError says what to install where it is missing."""
    return module("cerebras.pytorch")


def module(name: str) -> Any:  # noqa: ANN401
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
    library = Path(module("cerebras.pytorch.lib").__file__).parent
    paths = [str(library), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    os.environ["PATH"] = os.pathsep.join(paths)
