"""Types that every room may use."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

Content = dict[str, object]  # an object of JSON that is written and not looked into
Json = dict[str, Any]  # an object of free JSON: where the keys are known, write a dataclass instead
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
