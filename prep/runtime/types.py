"""Types that every room may use."""

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import pyarrow as pa

Content = dict[str, object]  # an object of JSON that is written and not looked into
Json = dict[str, Any]  # an object of free JSON: where the keys are known, write a dataclass instead
Class = TypeVar("Class", bound=type)
Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"  # of an Arrow table


class Strict:
    """Base of dataclasses that are read from YAML or JSON: a key that they lack is an error."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


class Within:
    """A path within a folder that knows its own as `path`."""

    def __init__(self, *steps: str) -> None:
        self.steps = steps

    def __get__(self, folder: Any, _: type) -> Path:  # noqa: ANN401  any folder
        """Return the path in a folder."""
        return folder.path.joinpath(*self.steps)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: Class) -> Class:
    """Make a class a frozen dataclass, as `dataclass(frozen=True)` does, in a third of its time.

    That compiles six methods of each class: a fifth of what a command that changes little takes.
    Here the constructor alone is compiled, when it is first called; the others are shared. Not for
    classes whose bases are dataclasses, nor those with an InitVar.

    >>> @frozen
    ... class Point:
    ...     "A place."
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1) == Point(1, 0), {Point(1)} == {Point(1)}
    (Point(x=1, y=0), True, True)
    """
    made: Any = dataclass(init=False, repr=False, eq=False)(kind)
    made.__dataclass_params__.frozen = True
    keys = fields(made)
    compared = [key.name for key in keys if key.compare]
    values: Callable[[object], object] = attrgetter(*compared) if compared else type

    def __init__(self: object, *given: Any, **named: Any) -> None:  # noqa: N807
        made.__init__ = _constructor(made, keys)
        made.__init__(self, *given, **named)

    def __eq__(self: object, other: object) -> bool:  # noqa: N807  a method
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    own = {
        "__init__": __init__,
        "__eq__": __eq__,
        "__hash__": lambda self: hash(values(self)),
        "__repr__": _repr,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
    }
    for name, method in own.items():
        if vars(made).get(name) is None:  # a class that has __eq__ has None as its __hash__
            setattr(made, name, method)
    return made


def _constructor(kind: type, keys: tuple[Field[Any], ...]) -> Callable[..., None]:
    """Compile `__init__` of a dataclass with these fields."""
    names: dict[str, Any] = {"put": object.__setattr__, "MISSING": MISSING}
    arguments, lines = ["self"], list[str]()
    for place, key in enumerate(sorted(keys, key=lambda key: bool(key.kw_only))):
        name, value = key.name, f"value{place}"
        if key.init and key.kw_only and "*" not in arguments:
            arguments.append("*")
        names[value] = key.default if key.default_factory is MISSING else key.default_factory
        usual = value if key.default_factory is MISSING else f"{value}()"
        if not key.init:
            made_anew = key.default_factory is not MISSING  # else the class has it
            lines += [f"put(self, {name!r}, {usual})"] if made_anew else []
            continue
        if key.default_factory is not MISSING:
            lines.append(f"{name} = {usual} if {name} is MISSING else {name}")
            arguments.append(f"{name}=MISSING")
        else:
            arguments.append(name if names[value] is MISSING else f"{name}={value}")
        lines.append(f"put(self, {name!r}, {name})")
    lines += ["self.__post_init__()"] if hasattr(kind, "__post_init__") else []
    exec(f"def __init__({', '.join(arguments)}):\n " + "\n ".join(lines or ["pass"]), names)
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{kind.__qualname__}.__init__"
    return made


def _repr(self: Any) -> str:  # noqa: ANN401  any dataclass
    shown = (f"{key.name}={getattr(self, key.name)!r}" for key in fields(self) if key.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, *_: object) -> None:
    raise FrozenInstanceError(f"{type(self).__qualname__}.{name}: can't be changed")
