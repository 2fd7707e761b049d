"""Records: dataclasses read from JSON, with one line for what breaks them; seals by a digest."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Content

if TYPE_CHECKING:
    from pydantic import ValidationError

Record = TypeVar("Record")


def record(content: object, shape: type[Record], place: object, remedy: str) -> Record:
    """Return JSON as a dataclass; DamageError names the place, the field, its fault, the remedy."""
    from pydantic import TypeAdapter, ValidationError  # a fifth of what reading verbs import

    try:
        return TypeAdapter(shape).validate_python(content)
    except ValidationError as error:
        raise fault(error, place, remedy) from None


def quick_record(content: Mapping[str, Any], shape: type[Record], place: str) -> Record:
    """Return JSON, which may hold more, as a dataclass with those that it has within.

    It checks no types, and needs no pydantic. Raises DamageError, with the place, for a field that
    is missing.
    """
    readers, known = _readers(shape), dict[str, Any]()
    for key in fields(shape):  # pyright: ignore[reportArgumentType]
        if key.name in content:
            value, read = content[key.name], readers.get(key.name)
            known[key.name] = read(value, f"{place}.{key.name}") if read and value else value
        elif key.default is key.default_factory is MISSING:
            raise DamageError(f"{place} lacks {key.name}; build again")
    return shape(**known)


@cache
def _readers(shape: type) -> dict[str, Callable[[Any, str], object]]:
    """Return what reads those fields of a dataclass that hold others."""
    readers = {name: _reader(hint) for name, hint in get_type_hints(shape).items()}
    return {name: read for name, read in readers.items() if read is not None}


def _reader(hint: Any) -> Callable[[Any, str], object] | None:  # noqa: ANN401  a type
    if is_dataclass(hint):
        return lambda value, place: quick_record(value, hint, place)  # pyright: ignore
    inner = next(filter(None, map(_reader, get_args(hint))), None)
    if inner is not None and get_origin(hint) is tuple:
        return lambda value, place: tuple(inner(item, place) for item in value)
    if inner is not None and get_origin(hint) is dict:
        return lambda value, place: {k: inner(v, f"{place}.{k}") for k, v in value.items()}
    return inner  # of what may be None


def fault(error: "ValidationError", place: object, remedy: str) -> DamageError:
    """Return the first fault of a record as an error of one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the line"
    return DamageError(f"{place}: {where}: {first['msg']}; {remedy}")


def read_record(path: Path, shape: type[Record], remedy: str) -> Record:
    """Read a file of JSON as a dataclass."""
    return record(read_json(path, remedy), shape, path, remedy)


def read_sealed(path: Path, shape: type[Record], remedy: str, *, exact: bool = False) -> Record:
    """Read a file that `write_sealed` wrote, and check its digest; exact: every byte of it."""
    content = receipts.read_sealed(path, remedy, exact=exact)
    del content["digest"]
    made: Any = record(content, shape, path, remedy)
    if exact and receipts.digest(asdict(made)) != receipts.digest(content):
        raise DamageError(f"{path}: was edited (it holds more than was sealed); {remedy}")
    return made


def write_sealed(path: Path, content: Content) -> None:
    """Write JSON with a digest of its own."""
    write_atomic(path, canonical({**content, "digest": receipts.digest(content)}))
