"""YAML files checked against dataclasses: errors name file, line, path, rule and value.

YAML is read by ruamel.yaml (which keeps line numbers) and checked by pydantic. Unknown keys are
errors everywhere.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from prep.errors import RecipeError, UsageError

Shape = TypeVar("Shape")
Step = str | int
# A dataclass that is read from YAML says `__pydantic_config__ = STRICT`.
STRICT: dict[str, Any] = {"extra": "forbid"}

REMEDIES = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is no known key",
    "extra_forbidden": "is no known key",
}
PLACE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # of a field: `rate`, `parts.1.weight`
RULES = {"dataclass_type": "must be a mapping", "dict_type": "must be a mapping"}


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
        raise _fault(path, content, told[0]) from None


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


def _fault(path: Path, content: Any, fault: Any) -> RecipeError:  # noqa: ANN401
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
    elif fault["type"] not in REMEDIES:
        message = RULES.get(fault["type"], f"{message[:1].lower()}{message[1:]}")
        message = f"{message}, got {plain(fault['input'])!r}"
    where = ".".join(str(step) for step in steps)
    return RecipeError(f"{path}:{line_of(content, steps)}: {where or 'the file'}: {message}")


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
