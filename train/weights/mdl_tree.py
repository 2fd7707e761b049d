"""The tree of an .mdl checkpoint: torch's pytree specifications, as JSON, without torch.

A checkpoint is flat on disk. `__spec__` says how its values nest: dicts (whose keys may be
numbers), lists and tuples, with the values in the order in which they are met. A value's name is
its path joined by dots.
"""

import json
from collections.abc import Iterator
from typing import Any

from crystalmix.prep.runtime.types import Json

Path = tuple[str, ...]
DICTS = {"builtins.dict", "collections.OrderedDict"}
LISTS = {"builtins.list", "builtins.tuple"}
PROTOCOL = 1
LEAF: Json = {"type": None, "context": None, "children_spec": []}


def flatten(tree: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  any nesting of anything
    """Yield each value of a tree with its name."""
    for path, value in _walk(tree, ()):
        yield ".".join(path), value


def _walk(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _walk(value, (*path, str(number)))
    else:
        yield path, tree


def dumps(tree: Any) -> str:  # noqa: ANN401
    """Return a tree's specification as cstorch writes it: once to be read, once for torch."""
    return json.dumps([_stars(tree), json.dumps([PROTOCOL, _spec(tree)])], indent=4)


def _stars(tree: Any) -> Any:  # noqa: ANN401
    if isinstance(tree, dict):
        return {str(key): _stars(value) for key, value in tree.items()}
    return [_stars(value) for value in tree] if isinstance(tree, list | tuple) else "*"


def _spec(tree: Any) -> Json:  # noqa: ANN401
    if isinstance(tree, dict):
        children = [_spec(value) for value in tree.values()]
        told = {"type": "builtins.dict", "context": json.dumps(list(tree))}
        return {**told, "children_spec": children}
    if isinstance(tree, list | tuple):
        kind = "builtins.list" if isinstance(tree, list) else "builtins.tuple"
        children = [_spec(value) for value in tree]
        return {"type": kind, "context": "null", "children_spec": children}
    return LEAF


class Spec:
    """A specification that was read: the names of its values, and the tree of given ones.

    Raises ValueError for what is no specification of dicts, lists and tuples.
    """

    def __init__(self, text: str) -> None:
        self.root: Json = json.loads(json.loads(text)[1])[1]
        self.names = [".".join(path) for path in _paths(self.root, ())]

    def build(self, values: Json) -> Any:  # noqa: ANN401
        """Return the tree of values, which are given by name."""
        return _build(self.root, (), values)


def _children(spec: Json) -> list[tuple[Any, Json]]:
    """Return the keys and specifications of what a container holds."""
    children: list[Json] = spec["children_spec"]
    if spec["type"] in DICTS:
        return list(zip(json.loads(spec["context"]), children, strict=True))
    if spec["type"] in LISTS:
        return list(enumerate(children))
    raise ValueError(f"it nests {spec['type']}")


def _paths(spec: Json, path: Path) -> Iterator[Path]:
    if spec["type"] is None:
        yield path
        return
    for key, child in _children(spec):
        yield from _paths(child, (*path, str(key)))


def _build(spec: Json, path: Path, values: Json) -> Any:  # noqa: ANN401
    if spec["type"] is None:
        return values[".".join(path)]
    built = {key: _build(child, (*path, str(key)), values) for key, child in _children(spec)}
    if spec["type"] in DICTS:
        return built
    return (list if spec["type"] == "builtins.list" else tuple)(built.values())
