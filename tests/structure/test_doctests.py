"""The examples in docstrings, run here: the runner collects `tests` alone."""

import doctest
import importlib
import pkgutil

import pytest

FLOORS = ("prep", "mixtures", "train")
NAMES = [
    module.name
    for floor in FLOORS
    for module in pkgutil.walk_packages(
        importlib.import_module(f"crystalmix.{floor}").__path__, f"crystalmix.{floor}."
    )
]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
