"""Frozen records: what `dataclass(frozen=True)` makes, without compiling its methods."""

import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from crystalmix.prep.runtime.types import Strict, frozen


def made(decorate: Callable[[type], type]) -> Any:
    class Part(Strict):
        """A record with every kind of field."""

        name: str
        weight: float = 1.0
        tags: list[str] = field(default_factory=list)
        note: str = field(default="", compare=False, repr=False)
        total: int = field(default=7, init=False)

        def __post_init__(self) -> None:
            if self.weight < 0:
                raise ValueError(f"weight: must be at least 0, got {self.weight}")

    return decorate(Part)


OURS, PLAIN = made(frozen), made(dataclass(frozen=True))


@frozen
class Point:
    """A record that can be pickled, as work items are."""

    x: int
    y: int = 0


@dataclass(frozen=True)
class Named(Point):
    """A dataclass of a frozen record."""

    name: str = ""


@frozen
class Own:  # noqa: PLW1641  frozen gives it one
    """A record that says itself when it is the same, and how it is shown."""

    x: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and abs(self.x) == abs(other.x)

    def __repr__(self) -> str:
        return "own"


@pytest.mark.parametrize("given", [("a",), ("a", 2.0), ("a", 2.0, ["x"]), ("a", 0.5, ["x"], "n")])
def test_a_record_is_what_a_dataclass_makes(given: tuple[object, ...]) -> None:
    ours, plain = OURS(*given), PLAIN(*given)
    assert vars(ours) == vars(plain)
    assert asdict(ours) == asdict(plain)
    assert repr(ours) == repr(plain)
    assert replace(ours, name="b") == OURS("b", *given[1:])
    assert OURS.__match_args__ == PLAIN.__match_args__
    assert [key.name for key in fields(OURS)] == [key.name for key in fields(PLAIN)]


def test_records_are_equal_and_hashed_by_what_is_compared() -> None:
    assert OURS("a", note="x") == OURS("a", note="y") != OURS("b")
    assert OURS("a") != PLAIN("a")
    assert {Point(1), Point(1, 0), Point(2)} == {Point(1), Point(2)}
    assert OURS("a").tags is not OURS("a").tags
    assert (Own(1), hash(Own(1)), repr(Own(1))) == (Own(-1), hash(Own(1)), "own")


def test_a_record_can_not_be_changed() -> None:
    point = Point(1)
    with pytest.raises(FrozenInstanceError, match=r"Point\.x"):
        point.x = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError, match=r"Point\.y"):
        del point.y
    assert point == Point(1)


def test_a_constructor_refuses_what_a_dataclass_refuses() -> None:
    for kind in (OURS, PLAIN):
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'name'"):
            kind()
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'other'"):
            kind("a", other=1)
        with pytest.raises(ValueError, match=r"weight: must be at least 0, got -1"):
            kind("a", -1)


def spans(decorate: Callable[[type], type]) -> Any:
    class Span:
        """A record of whose values one is given by name alone."""

        start: int
        _: KW_ONLY
        stop: int = 2

    return decorate(Span)


@pytest.mark.parametrize("decorate", [frozen, dataclass(frozen=True)])
def test_fields_after_kw_only_are_given_by_name_alone(decorate: Callable[[type], type]) -> None:
    kind = spans(decorate)
    assert (kind(1, stop=3).stop, kind(1).stop) == (3, 2)
    with pytest.raises(TypeError, match="positional argument"):
        kind(1, 3)


def test_records_are_pickled_and_extended() -> None:
    assert pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2)
    named = Named(1, 2, "n")
    assert (named.x, named.name, asdict(named)) == (1, "n", {"x": 1, "y": 2, "name": "n"})


def test_settings_are_read_as_those_of_a_dataclass() -> None:
    for kind in (OURS, PLAIN):
        read = TypeAdapter(kind).validate_python
        assert read({"name": "a", "weight": "2"}) == kind("a", 2.0)
        for wrong in ({"name": "a", "odd": 1}, {"name": "a", "weight": -1}, {"weight": 1}):
            with pytest.raises(ValidationError):
                read(wrong)
