"""Type aliases that every room may use."""

from typing import Any

Json = dict[str, Any]  # an object of free JSON: where the keys are known, write a dataclass instead
