"""Type aliases that every room may use."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

Content = dict[str, object]  # an object of JSON that is written and not looked into
Json = dict[str, Any]  # an object of free JSON: where the keys are known, write a dataclass instead
Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"  # of an Arrow table
