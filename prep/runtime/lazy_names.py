"""What is imported when it is first used: the names of a room's face (PEP 562), and modules.

A face lists what other rooms use under `if TYPE_CHECKING`, where type checkers and readers find it.
The same lines are read here, so that a face by itself loads neither torch nor DuckDB nor Arrow.
"""

import builtins
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

LOCK = Lock()  # of the one statement for imports that a process has


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


@contextmanager
def imported_later(importer: str) -> Generator[None]:
    """Let the modules that the importer imports within be loaded when it first uses them.

    For what a command may not need, and for modules only, not for names in them.

    >>> with imported_later(__name__):
    ...     import colorsys
    >>> colorsys.rgb_to_hls(1.0, 1.0, 1.0)
    (0.0, 1.0, 0.0)
    """

    def stand_in(name: str, scope: Any, local: Any, names: Any, level: int) -> object:  # noqa: ANN401
        if scope is None or scope.get("__name__") != importer:  # in another thread
            return load(name, scope, local, names, level)
        if names:
            return SimpleNamespace(
                **{each: LazyModule(importer, f"{name}.{each}") for each in names}
            )
        module: object = LazyModule(importer, name)
        for step in reversed(name.split(".")[1:]):  # of `import a.b as c`
            module = SimpleNamespace(**{step: module})
        return module

    with LOCK:
        load: Callable[..., object] = builtins.__import__
        builtins.__import__ = stand_in
        try:
            yield
        finally:
            builtins.__import__ = load
