"""YAML files checked against dataclasses: errors name file, line, path, rule and value.

YAML is read by ruamel.yaml (which keeps line numbers) and checked by pydantic. Unknown keys are
errors everywhere.
"""

import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from crystalmix.prep.runtime.errors import RecipeError, UsageError

Shape = TypeVar("Shape")
Step = str | int
# A dataclass that is read from YAML says `__pydantic_config__ = STRICT`.
STRICT: dict[str, Any] = {"extra": "forbid"}

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
REMEDIES = {"missing": "is missing", **dict.fromkeys(UNKNOWN, "is no known key")}
PLACE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # of a field: `rate`, `parts.1.weight`
RULES = {
    **dict.fromkeys(("dataclass_type", "dict_type"), "must be a mapping"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
}


def read(path: Path, shape: type[Shape]) -> Shape:
    """Read a YAML file as a value of a dataclass type; RecipeError names the first fault."""
    return check(path, load(path), shape)


def load(path: Path) -> Any:  # noqa: ANN401  what a YAML file holds is not known before
    """Parse a YAML file; mappings and lists remember their lines."""
    text = ""
    try:
        text = path.read_text("utf-8")
        return YAML(typ="rt").load(text)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: is no YAML: {error.problem}") from None
    except YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise RecipeError(f"{path}:{line}: is no YAML: {str(error).splitlines()[0]}") from None


def check(path: Path, content: Any, shape: type[Shape]) -> Shape:  # noqa: ANN401
    """Check parsed YAML against a dataclass type."""
    try:
        return TypeAdapter(shape).validate_python(plain(content))
    except ValidationError as error:
        # Of several faults the one that stands first in the file is told; what is missing last,
        # since a misspelt key is told as unknown and as missing.
        told = sorted(error.errors(), key=lambda fault: _place(content, fault))
        raise _fault(path, content, told[0], shape) from None


def _place(content: Any, fault: Any) -> tuple[bool, int]:  # noqa: ANN401
    return fault["type"] == "missing", line_of(content, fault["loc"])


def line_of(content: Any, steps: tuple[Step, ...]) -> int:  # noqa: ANN401
    """Return the line (from 1) at which a path stands, or the line of its nearest parent."""
    line = 1
    for step in steps:
        try:
            key: Any = step
            if isinstance(content, CommentedMap):
                key = next(key for key in content if str(key) == str(step))  # 1 stands for "1"
                line = content.lc.key(key)[0] + 1
            elif isinstance(content, CommentedSeq):
                line = content.lc.item(key)[0] + 1
            content = content[key]
        except (KeyError, IndexError, TypeError, AttributeError, StopIteration):
            return line
    return line


def _fault(path: Path, content: Any, fault: Any, shape: Any) -> RecipeError:  # noqa: ANN401
    steps: tuple[Step, ...] = fault["loc"]
    message = str(REMEDIES.get(fault["type"], fault["msg"]))
    if fault["type"] == "value_error":
        # Raised by a dataclass about one of its fields: `rate: must lie in [0, 1], got 1.9`, or
        # about a field of one of them: `parts.1.weight: ...`.
        name, _, rest = str(fault["ctx"]["error"]).partition(": ")
        if rest and PLACE.fullmatch(name):
            inner = (int(step) if step.isdigit() else step for step in name.split("."))
            steps, message = (*steps, *inner), rest
        else:
            message = str(fault["ctx"]["error"])
    elif fault["type"] in UNKNOWN:
        message += _others(content, steps, shape)
    elif fault["type"] not in REMEDIES:
        given, message = plain(fault["input"]), f"{message[:1].lower()}{message[1:]}"
        rule = RULES.get(fault["type"], message)
        message = f"{rule}, got {given!r}"
        if rule == RULES["list_type"] and isinstance(given, str | int | float):
            message += f"; write [{given}]"
    where = ".".join(str(step) for step in steps)
    return RecipeError(f"{path}:{line_of(content, steps)}: {where or 'the file'}: {message}")


def _others(content: Any, steps: tuple[Step, ...], shape: Any) -> str:  # noqa: ANN401
    """Return what may be meant by an unknown key: the known one like it, else all there are."""
    for step in steps[:-1]:
        shape, content = _below(shape, step), _value(content, step)
    shape = _keyed(shape)
    keys = [each.name for each in fields(shape) if each.init] if is_dataclass(shape) else []
    if isinstance(content, CommentedMap):  # without those that no line of the file gives
        keys = [key for key in keys if key not in content or key in content.lc.data]
    if like := get_close_matches(str(steps[-1]), keys, 1):
        return f"; did you mean {like[0]}?"
    return f" (there are {', '.join(keys)})" if keys else ""


def _value(content: Any, step: Step) -> Any:  # noqa: ANN401
    found: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        found = enumerate(content)
    return next((value for key, value in found if str(key) == str(step)), None)


def _below(shape: Any, step: Step) -> Any:  # noqa: ANN401
    """Return the type of what stands at a step below a type, None where it has no steps."""
    if is_dataclass(shape):
        return get_type_hints(shape).get(str(step))
    if hasattr(shape, "__origin__"):  # dict[str, X], tuple[X, ...]
        return next(kind for kind in reversed(get_args(shape)) if kind is not ...)
    member = _keyed(shape)
    if member is shape:
        return None
    # pydantic may name the member of a union in a step of its own
    return member if step == getattr(member, "__name__", "") else _below(member, step)


def _keyed(shape: Any) -> Any:  # noqa: ANN401
    """Return the member of a union that has keys, else its first; any other type as it is."""
    if not isinstance(shape, UnionType):
        return shape
    members = [kind for kind in get_args(shape) if kind is not NoneType]
    return next((kind for kind in members if is_dataclass(kind)), members[0])


def plain(content: Any) -> Any:  # noqa: ANN401
    """Return parsed YAML as plain dicts, lists and scalars, without its lines."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain(value) for value in content]
    if isinstance(content, bool) or content is None:
        return content
    for kind in (int, float, str):
        if isinstance(content, kind):
            return kind(content)
    return content


def find(name: str, bundled: Path, what: str) -> Path:
    """Return a YAML file: a path, or the name of one in the folder of those that we bring.

    what: said where there is neither, such as "no such recipe file, and no bundled recipe".
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    if (known := bundled / f"{name}.yaml").exists():
        return known
    names = ", ".join(sorted(each.stem for each in bundled.glob("*.yaml")))
    raise UsageError(f"{name}: {what} (there are {names})")
