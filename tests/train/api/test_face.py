"""The Python face: every name is documented, its examples run, and importing it is light."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.trace import overview
from helpers.runs import run_file, small_build, undisturbed

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
HEAVY = ("torch", "duckdb", "pyarrow", "h5py", "numpy", "pydantic", "click")


def test_every_exported_name_is_documented_on_the_page_of_the_face() -> None:
    text = PAGE.read_text("utf-8")
    for name in cm.__all__:
        assert re.search(rf"`cm\.{name}\b", text), name
        assert getattr(cm, name).__doc__, name


def test_the_examples_of_the_page_give_what_it_shows(tmp_path: Path) -> None:
    places = {"cm": cm, "folder": tmp_path, "recipe": small_build().parent / "recipe.yaml"}
    places |= {"run_file": run_file()}
    examples = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, places, PAGE.name, str(PAGE), 0)
    said: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=said.append).failed == 0, "".join(
        said
    )


def test_importing_the_face_loads_nothing_heavy_and_each_name_loads() -> None:
    code = (
        "import sys, json, crystalmix as cm;"
        f"light = [name for name in {HEAVY} if name in sys.modules];"
        "[getattr(cm, name) for name in cm.__all__];"
        "print(json.dumps([light, 'torch' in sys.modules, dir(cm)]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    light, torch, names = json.loads(result.stdout)
    assert (light, torch) == ([], False)
    assert set(cm.__all__) <= set(names)


def test_train_is_a_function_and_a_package() -> None:
    from crystalmix.train.record import ledger

    assert callable(cm.train)
    assert ledger.__name__ == "crystalmix.train.record.ledger"


def test_a_name_that_the_face_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cm.nothing  # noqa: B018


def test_open_tells_builds_from_runs_and_refuses_the_rest(tmp_path: Path) -> None:
    assert isinstance(cm.open(small_build()), cm.Build)
    run = cm.open(str(undisturbed()))
    assert isinstance(run, cm.Run)
    assert run.build.path == small_build().resolve()
    with pytest.raises(UsageError, match="no such file or folder"):
        cm.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no build, manifest or run"):
        cm.open(tmp_path)


def test_a_phase_predicts_what_its_steps_consumed() -> None:
    run = cm.open(undisturbed())
    assert isinstance(run, cm.Run)
    for name, phase in run.build.phases.items():
        planned = phase.rows(0, phase.manifest.steps - 1).arrow
        recorded = run.ledger(name).arrow.select(planned.column_names)
        assert planned.cast(recorded.schema).equals(recorded.combine_chunks()) or (
            planned.to_pylist() == recorded.to_pylist()
        )
    with pytest.raises(UsageError, match="phase prose has the steps 0 to 11, got 5 to 12"):
        run.build.phases["prose"].rows(5, 12)


def test_answers_show_themselves_in_notebooks_as_tables() -> None:
    run = cm.open(undisturbed())
    assert isinstance(run, cm.Run)
    shown = run.step("prose", 3)._repr_html_()
    assert shown.startswith("<table><thead><tr><th>slot</th><th>part</th>")
    assert "<pre>" in run._repr_html_()
    assert "<th>asked</th>" in run.ratios()._repr_html_()
    escaped = cm.Table(pa.table({"a<b": ["<script>"]}))._repr_html_()
    assert "<script>" not in escaped
    assert pa.table(run.sql("SELECT 1 AS one")).to_pylist() == [{"one": 1}]
    assert overview.look(run.path).content() == run.content()
