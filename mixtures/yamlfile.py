"""YAML files checked against dataclasses: errors name file, line, path, rule and value.

YAML is read by ruamel.yaml (which keeps line numbers) and checked by pydantic. Unknown keys are
errors everywhere.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from prep.errors import RecipeError

Shape = TypeVar("Shape")
Step = str | int
# A dataclass that is read from YAML says `__pydantic_config__ = STRICT`.
STRICT: dict[str, Any] = {"extra": "forbid"}

REMEDIES = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is no known key",
    "extra_forbidden": "is no known key",
}


def read(path: Path, shape: type[Shape]) -> Shape:
    """Read a YAML file as a value of a dataclass type; RecipeError names the first fault."""
    return check(path, load(path), shape)


def load(path: Path) -> Any:  # noqa: ANN401  what a YAML file holds is not known before
    """Parse a YAML file; mappings and lists remember their lines."""
    try:
        return YAML(typ="rt").load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: is no YAML: {error.problem}") from None
    except YAMLError as error:
        raise RecipeError(f"{path}: is no YAML: {str(error).splitlines()[0]}") from None


def check(path: Path, content: Any, shape: type[Shape]) -> Shape:  # noqa: ANN401
    """Check parsed YAML against a dataclass type."""
    try:
        return TypeAdapter(shape).validate_python(plain(content))
    except ValidationError as error:
        # Of several faults the one that stands first in the file is told; a union's branches
        # (`None` or a mapping) tell the same fault twice.
        told = sorted(error.errors(), key=lambda fault: line_of(content, fault["loc"]))
        raise _fault(path, content, told[0]) from None


def line_of(content: Any, steps: tuple[Step, ...]) -> int:  # noqa: ANN401
    """Return the line (from 1) at which a path stands, or the line of its nearest parent."""
    line = 1
    for step in steps:
        try:
            if isinstance(content, CommentedMap):
                line = content.lc.key(step)[0] + 1
            elif isinstance(content, CommentedSeq):
                line = content.lc.item(step)[0] + 1
            content = content[step]
        except (KeyError, IndexError, TypeError, AttributeError):
            return line
    return line


def _fault(path: Path, content: Any, fault: Any) -> RecipeError:  # noqa: ANN401
    steps: tuple[Step, ...] = tuple(step for step in fault["loc"] if not _is_branch(step))
    message = str(REMEDIES.get(fault["type"], fault["msg"]))
    if fault["type"] == "value_error":
        # Raised by a dataclass about one of its fields: `rate: must lie in [0, 1], got 1.9`.
        name, _, rest = str(fault["ctx"]["error"]).partition(": ")
        if rest and name.isidentifier():
            steps, message = (*steps, name), rest
        else:
            message = str(fault["ctx"]["error"])
    elif fault["type"] not in REMEDIES:
        message = f"{message[:1].lower()}{message[1:]}, got {fault['input']!r}"
    where = ".".join(str(step) for step in steps)
    return RecipeError(f"{path}:{line_of(content, steps)}: {where or 'the file'}: {message}")


def _is_branch(step: Step) -> bool:
    # pydantic names the branch of a union in the path; dataclass names are capitalised.
    return isinstance(step, str) and (step[:1].isupper() or step.startswith("function-"))


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
