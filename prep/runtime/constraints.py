"""Constraints of settings: what a value must be, and one line for what it is not.

A settings dataclass states the constraints of a field in its type, `Annotated[float, within(0, 1)]`
or `Count`; pydantic checks them where the settings are read from a file, and `enforce`, called
first in `__post_init__`, wherever else they are made.
"""

import math
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

RULES = {
    **dict.fromkeys(("dataclass_type", "dict_type"), "must be a mapping"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "too_short": "must name at least {min_length}",
}


def within(low: float, high: float, ends: str = "[]", shown: str = "") -> AfterValidator:
    """Return the constraint of an interval; shown: its ends in words, where they are long."""
    interval = f"{ends[0]}{shown or f'{low:g}, {high:g}'}{ends[1]}"

    def check(value: float) -> float:
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        if not (above and below):
            context = {"interval": interval, "value": value}
            raise PydanticCustomError("interval", "must lie in {interval}", context)
        return value

    return AfterValidator(check)


def _finite(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise PydanticCustomError("finite", "must be finite and at least 0")
    return value


Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(gt=0, lt=2**31)]  # as the ledger holds steps and rows, in int32
FromZero = Annotated[int, Field(ge=0)]
Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[float, within(0, 1)]


@lru_cache(maxsize=256)
def _checks(kind: type) -> dict[str, TypeAdapter[Any]]:
    """Return a check for each field of a dataclass whose type has a constraint somewhere."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: TypeAdapter(hint)
        for name, hint in hints.items()
        if "Annotated[" in repr(hint) and "ClassVar" not in repr(hint)
    }


def enforce(settings: object) -> None:
    """Raise ValueError, `field: rule, value`, for the first field that breaks its constraints."""
    for name, check in _checks(type(settings)).items():
        try:
            check.validate_python(getattr(settings, name))
        except ValidationError as error:
            fault = error.errors()[0]
            if not fault["type"].endswith(("_type", "_parsing")):  # types are a checker's matter
                raise ValueError(f"{name}: {rule_broken(fault)}") from None


def rule_broken(fault: ErrorDetails) -> str:
    """Return the rule that a pydantic fault names, and the value that breaks it."""
    bounds = fault.get("ctx", {})
    value = plain(bounds.get("value", fault["input"]))
    bounds = {k: int(b) if isinstance(b, float) and b == b // 1 else b for k, b in bounds.items()}
    if bounds.get("gt") == 0:
        rule = "must be positive"
    elif fault["type"] in RULES:
        rule = RULES[fault["type"]].format(**bounds)
    else:
        rule = fault["msg"].replace("Input should", "must", 1)
        rule = f"{rule[:1].lower()}{rule[1:]}"
    hint = f"; write [{value}]" if fault["type"] in {"tuple_type", "list_type"} else ""
    return f"{rule}, got {value!r}{hint if isinstance(value, str | int | float) else ''}"


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
