"""YAML files checked against dataclasses: errors name file, line, path, rule and value.

YAML is read by ruamel.yaml (which keeps line numbers) and checked by pydantic. Unknown keys are
errors everywhere.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionStartEvent, ScalarEvent

from crystalmix.prep.runtime.atomic_files import is_url, regular_bytes
from crystalmix.prep.runtime.constraints import plain, rule_broken
from crystalmix.prep.runtime.errors import RecipeError, UsageError

Shape = TypeVar("Shape")
Step = str | int
DEEPEST = 100
BRACKETS = re.compile(r"[\[\]{}\n]")
NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # no path may hold the one, no UTF-8 the others
MOST_VALUES, MOST_BYTES = 1_000_000, 16 << 20

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
REMEDIES = {"missing": "is missing", **dict.fromkeys(UNKNOWN, "is no known key")}
PLACE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # of a field: `rate`, `parts.1.weight`


def read(path: Path, shape: type[Shape], overrides: Sequence[str] = ()) -> Shape:
    """Read a YAML file as a value of a dataclass type; RecipeError names the first fault.

    overrides: as of `override`.
    """
    return check(path, override(load(path), overrides), shape)


def load(path: Path) -> Any:  # noqa: ANN401  what YAML holds is not known before
    """Parse a YAML file; mappings and lists remember their lines."""
    text = ""
    try:
        text = regular_bytes(path, most=MOST_BYTES).decode()
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        _check_brackets(path, text)
        yaml = YAML(typ="rt")
        yaml.Composer = partial(_Composer, path)
        content = yaml.load(text)
        _check_size(path, content)
        return content
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

    except ValueError as error:  # of a number or date that Python can't hold
        line = _bad_line(text)
        raise RecipeError(f"{path}:{line}: is no YAML: {str(error).split(';')[0]}") from None


def _check_brackets(path: Path, text: str) -> None:
    """Refuse brackets nested far deeper than DEEPEST: ruamel reads far ahead, which takes long."""
    depth, line = 0, 1
    for bracket in BRACKETS.finditer(text):
        line += bracket[0] == "\n"
        depth += (bracket[0] in "[{") - (bracket[0] in "]}")
        if depth > 4 * DEEPEST:
            raise RecipeError(f"{path}:{line}: is nested over {DEEPEST} deep")


class _Composer(Composer):
    """Refuses YAML nested deeper than DEEPEST, while it is read."""

    def __init__(self, path: Path, loader: Any) -> None:  # noqa: ANN401
        super().__init__(loader)
        self.path, self.collections = path, 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401
        event = self.parser.peek_event()
        inner = isinstance(event, CollectionStartEvent)
        if inner and self.collections == DEEPEST:
            line = event.start_mark.line + 1
            raise RecipeError(f"{self.path}:{line}: is nested over {DEEPEST} deep")
        self.collections += inner
        node = super().compose_node(parent, index)
        self.collections -= inner
        return node


def _bad_line(text: str) -> int:
    """Return the line of the first scalar that can't be made, 1 where none is found alone."""
    for event in YAML(typ="rt").parse(text):
        if isinstance(event, ScalarEvent) and not event.style:
            try:
                YAML(typ="rt").load(event.value)
            except YAMLError:
                continue
            except ValueError:
                return event.start_mark.line + 1
    return 1


def _check_size(path: Path, content: object) -> None:
    """Refuse content that aliases make endless or too large, and characters that no text has.

    The time it takes grows with the text, not with what aliases stand for.
    """
    sizes: dict[int, int] = {}  # of each mapping or list by its id; 0 while it is being counted

    def size(value: object, line: int) -> int:
        if isinstance(value, str) and (bad := NO_TEXT.search(value)):
            raise RecipeError(f"{path}:{line}: holds {bad[0]!r}, which no text may hold")
        if not isinstance(value, (dict, list)):
            return 1
        line = value.lc.line + 1 if isinstance(value, (CommentedMap, CommentedSeq)) else line
        if id(value) not in sizes:
            sizes[id(value)] = 0
            members = [*value, *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(member, line) for member in members)
        if sizes[id(value)] == 0:
            raise RecipeError(f"{path}:{line}: holds an alias of itself; write it out")
        if sizes[id(value)] > MOST_VALUES:
            raise RecipeError(
                f"{path}:{line}: its aliases stand for over {MOST_VALUES:,} values; write them out"
            )
        return sizes[id(value)]

    size(content, 1)


def override(content: Any, assignments: Iterable[str]) -> Any:  # noqa: ANN401
    """Apply `--set` assignments to parsed YAML in place, and return it.

    An assignment is `a.b.0.c=value`: keys and places in lists, then a value in YAML. Keys that are
    missing are made. Raises UsageError for an assignment that leads nowhere.

    >>> override({"runconfig": {"seed": 1}}, ["runconfig.seed=2", "model.sizes=[8, 16]"])
    {'runconfig': {'seed': 2}, 'model': {'sizes': [8, 16]}}
    """
    for assignment in assignments:
        where, equals, text = assignment.partition("=")
        steps = where.split(".")
        if not (equals and all(steps)):
            raise UsageError(
                f"--set: must be KEY=VALUE such as runconfig.seed=2, got {assignment!r}"
            )
        try:
            value = plain(YAML(typ="rt").load(text))
        except (YAMLError, RecursionError):
            raise UsageError(f"--set {where}: is no YAML: {text!r}") from None
        place = content
        for depth, step in enumerate(steps):
            last = depth == len(steps) - 1
            place = _assign(place, step, value if last else {}, f"--set {where}", keep=not last)
    return content


def _assign(place: Any, step: str, value: Any, what: str, *, keep: bool) -> Any:  # noqa: ANN401
    """Set what stands at a step of a mapping or list and return it; keep: unless it is there."""
    if isinstance(place, dict):
        key: Any = next((key for key in place if str(key) == step), step)
        if not keep or place.get(key) is None:
            place[key] = value
        return place[key]
    if not isinstance(place, list):
        raise UsageError(f"{what}: {step} can't be set: {plain(place)!r} holds no keys")
    if not (step.isdecimal() and int(step) < len(place)):
        raise UsageError(f"{what}: {step} must be a place in a list of {len(place)}, from 0")
    if not keep:
        place[int(step)] = value
    return place[int(step)]


def check(path: Path, content: object, shape: type[Shape]) -> Shape:
    """Check parsed YAML against a dataclass type."""
    try:
        return TypeAdapter(shape).validate_python(plain(content))
    except ValidationError as error:
        # Of several faults the one that stands first in the file is reported; what is missing last,
        # since a misspelt key is reported as unknown and as missing.
        faults = sorted(error.errors(), key=lambda fault: _place(content, fault))
        raise _fault(path, content, faults[0], shape) from None


def _place(content: object, fault: ErrorDetails) -> tuple[bool, int]:
    return fault["type"] == "missing", line_of(content, fault["loc"])


def line_of(content: object, steps: tuple[Step, ...]) -> int:
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
            content = content[key]  # pyright: ignore[reportIndexIssue]
        except (KeyError, IndexError, TypeError, AttributeError, StopIteration):
            return line
    return line


def _fault(path: Path, content: object, fault: ErrorDetails, shape: object) -> RecipeError:
    steps: tuple[Step, ...] = fault["loc"]
    message = str(REMEDIES.get(fault["type"], fault["msg"]))
    error = str(fault.get("ctx", {}).get("error"))
    if fault["type"] == "value_error":
        # Raised by a dataclass about one of its fields: `rate: must lie in [0, 1], got 1.9`, or
        # about a field of one of them: `parts.1.weight: ...`.
        name, _, rest = error.partition(": ")
        if rest and PLACE.fullmatch(name):
            inner = (int(step) if step.isdigit() else step for step in name.split("."))
            steps, message = (*steps, *inner), rest
        else:
            message = error
    elif fault["type"] in UNKNOWN:
        message += _others(content, steps, shape)
    elif fault["type"] not in REMEDIES:
        message = rule_broken(fault)
    where = ".".join(str(step) for step in steps)
    return RecipeError(f"{path}:{line_of(content, steps)}: {where or 'the file'}: {message}")


def like(key: str, known: Sequence[str], shown: Sequence[str] | None = None) -> str:
    """Return what may be meant by an unknown key, as the end of a message.

    known: all keys. shown: those to list where none is like it (all of them if None).

    >>> like("sed", ["seed", "threads"]), like("x", ["seed", "threads"])
    ('; did you mean seed?', ' (there are seed, threads)')
    """
    if close := get_close_matches(key, known, 1):
        return f"; did you mean {close[0]}?"
    listed = known if shown is None else shown
    return f" (there are {', '.join(listed)})" if listed else ""


def _others(content: object, steps: tuple[Step, ...], shape: object) -> str:
    """Return what may be meant by an unknown key: the known one like it, else all there are."""
    for step in steps[:-1]:
        shape, content = _below(shape, step), _value(content, step)
    shape = _keyed(shape)
    keys = [field.name for field in fields(shape) if field.init] if is_dataclass(shape) else []
    if isinstance(content, CommentedMap):  # without those that no line of the file gives
        keys = [key for key in keys if key not in content or key in content.lc.data]
    return like(str(steps[-1]), keys)


def _value(content: object, step: Step) -> object:
    entries: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        entries = enumerate(content)
    return next((value for key, value in entries if str(key) == str(step)), None)


def _below(shape: object, step: Step) -> object:
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


def _keyed(shape: object) -> object:
    """Return the member of a union that has keys, else its first; any other type as it is."""
    if not isinstance(shape, UnionType):
        return shape
    members = [kind for kind in get_args(shape) if kind is not NoneType]
    return next((kind for kind in members if is_dataclass(kind)), members[0])


def find(name: str, bundled: Path, what: str) -> Path:
    """Return a YAML file: a path, or the name of one in the folder of those that we bring.

    what: said where there is neither, such as "no such recipe file, and no bundled recipe".
    """
    path = Path(name)
    if is_url(name):
        return path  # of which `load` makes a url again
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    if (known := bundled / f"{name}.yaml").exists():
        return known
    names = ", ".join(sorted(file.stem for file in bundled.glob("*.yaml")))
    raise UsageError(f"{name}: {what} (there are {names})")
