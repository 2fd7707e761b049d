"""Names of a room's face, imported when they are first used (PEP 562).

A face lists what other rooms use under `if TYPE_CHECKING`, where type checkers and readers find it.
The same lines are read here, so that a face by itself loads neither torch nor DuckDB nor Arrow.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def lazy_names(face: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a face, which is a package, by its name."""
    places: dict[str, str] = {}

    def listed() -> dict[str, str]:
        import ast

        if not places:
            source = Path(sys.modules[face].__file__ or "").read_text("utf-8")
            block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
            for node in block.body:
                if isinstance(node, ast.ImportFrom) and node.module is not None:
                    places.update({alias.name: node.module for alias in node.names})
        return places

    def load(name: str) -> object:
        if name.startswith("__") or name not in listed():
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        if places[name] == face:  # a module of the room, as a whole
            return import_module(f"{face}.{name}")
        return getattr(import_module(places[name]), name)

    return load, lambda: sorted({*vars(sys.modules[face]), *listed()})
