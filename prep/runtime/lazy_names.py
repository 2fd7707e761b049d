"""What is imported when it is first used: the names of a room's face (PEP 562), and modules.

A face lists what other rooms use under `if TYPE_CHECKING`, where type checkers and readers find it.
The same lines are read here, so that a face by itself loads neither torch nor DuckDB nor Arrow.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


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


class LazyModule(ModuleType):
    """Stands for a module among an importer's names until something of it is used."""

    importer: str

    def __init__(self, importer: str, name: str) -> None:
        super().__init__(name)
        self.importer = importer

    def __getattr__(self, name: str) -> object:
        """Import the module, and let it take this one's place."""
        module = import_module(self.__name__)
        names = vars(sys.modules[self.importer])
        names.update({key: module for key, value in [*names.items()] if value is self})
        return getattr(module, name)


def lazy_modules(importer: str, *names: str) -> Any:  # noqa: ANN401
    """Return modules by their names, each imported when the importer first uses something of it.

    For what a command may not need: the importer names them for type checkers as a face does. One
    name gives a module, several a list.

    >>> lazy_modules(__name__, "colorsys").rgb_to_hls(1.0, 1.0, 1.0)
    (0.0, 1.0, 0.0)
    """
    modules = [LazyModule(importer, name) for name in names]
    return modules if len(modules) > 1 else modules[0]
