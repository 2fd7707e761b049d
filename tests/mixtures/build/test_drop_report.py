"""Drop notes: what a source loses unasked is told on stderr; what was asked for is not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build import drop_report as dropnotes
from crystalmix.mixtures.plan.sample_sources import sampled
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.documents.source import Source, listing
from crystalmix.prep.runtime.errors import InputError
from helpers import corpora
from helpers.materials import raw
from helpers.selections import EVERYTHING, PLAIN, Json, corpus, dropped, scan

TEXTS: list[Json | bytes] = [{"text": f"a text with the number {i}"} for i in range(6)]


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return told


def one(files: list[str], **settings: Any) -> Json:
    """Return the changes that leave the recipe one source."""
    source = {"files": files, "where": None, "keep": [], "identity": None, **settings}
    return {"sources": {"web": source, "book": None}, "domains": {"all": {"sources": ["web"]}}}


def test_records_without_a_text_are_told_once_a_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert dropped(scan(corpus(tmp_path)))["web"] == PLAIN["web"]
    assert notes(caplog) == [
        f"source web: 3 of {10 + 4 + 10} records dropped (bad_json 1, blank 1, no_text 1); "
        f"crystalmix show {tmp_path / 'build'} tells more"
    ]
    scan(tmp_path)  # fresh
    assert notes(caplog) == []


def test_the_receipt_is_not_changed_by_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan(corpus(tmp_path))
    for name in ("tell_dropped", "tell_unread"):
        monkeypatch.setattr(dropnotes, name, lambda *_: None)
    assert scan(tmp_path, "silent") == first


@pytest.mark.parametrize(
    ("records", "settings", "told"),
    [
        ([*TEXTS, {"body": "x"}] * 300, {}, "300 of 2,100 records dropped (no_text 300)"),
        ([*TEXTS, {"text": "x" * 99}], {"max_record_bytes": 50}, "too_long 1"),
        (
            [*TEXTS, {"text": "x" * 99}, b"{", b"{"],
            {"where": "text like 'a%'"},
            "dropped (bad_json 2)",
        ),
        (TEXTS, {}, ""),
        (TEXTS, {"where": "text like '%5'"}, ""),
        (TEXTS, {"select": {"limit": 1}}, ""),
    ],
)
def test_what_nobody_asked_for_is_told_and_what_was_asked_is_not(
    tmp_path: Path, records: Any, settings: Json, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw(tmp_path / "web" / "a.jsonl", records)
    scan(tmp_path, **one(["web"], **settings))
    found = notes(caplog)
    assert len(found) == bool(told)
    assert told in "".join(found)
    assert "where" not in "".join(found)


def test_most_of_a_source_taken_as_duplicates_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw(tmp_path / "web" / "a.jsonl", [*TEXTS, *TEXTS])
    scan(tmp_path, "half", **one(["web"]), duplicates={"exact": "source"})
    assert notes(caplog) == []
    raw(tmp_path / "web" / "a.jsonl", [*TEXTS, *TEXTS, TEXTS[0]])
    scan(tmp_path, "less", **one(["web"]), duplicates={"exact": "source"})
    [told] = notes(caplog)
    assert told.startswith("source web: 7 of 13 records dropped (duplicate 7); ")


def test_a_broken_file_that_is_left_out_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw(tmp_path / "web" / "a.jsonl", TEXTS)
    (tmp_path / "web" / "b.parquet").write_bytes(b"PAR1 no more")
    scan(tmp_path, **one(["web"], on_error="skip"))
    [told] = notes(caplog)
    assert told.startswith("source web: 1 file broken (")


def test_files_of_other_kinds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw(tmp_path / "web" / "a.jsonl", TEXTS)
    for name in ("README", "data.csv", "deep/x.parquet.bak", ".hidden"):
        path = tmp_path / "web" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no data")
    told = "3 files of other kinds are not read (web/README, web/data.csv, web/deep/x.parquet.bak)"
    for number, files in enumerate((["web"], ["web/**/*"])):
        scan(tmp_path, f"build-{number}", **one(files))
        assert notes(caplog) == [f"source web: {told}"]
    for number, files in enumerate((["web/*.jsonl"], ["web/a.jsonl"])):  # nobody asked for others
        scan(tmp_path, f"other-{number}", **one(files))
        assert notes(caplog) == []
    (tmp_path / "web" / "gone").symlink_to("nowhere")
    scan(tmp_path, "link", **one(["web"]))
    assert notes(caplog) == [
        "source web: 1 file left out (web/gone is a link that leads nowhere)",
        f"source web: {told}",
    ]


def test_files_that_another_source_reads_are_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw(tmp_path / "web" / "a.jsonl", TEXTS)
    for name in ("a.md", "b.txt", "c.csv", "d.csv", "e.csv", "f.csv"):
        (tmp_path / "web" / name).write_text(f"a text called {name}")
    asked = one(["web"])
    asked["sources"]["book"] = {"files": ["web"], "format": "text", "identity": None, "keep": []}
    asked["domains"]["all"]["sources"] = ["web", "book"]
    scan(tmp_path, **asked)
    told = "4 files of other kinds are not read (web/c.csv, web/d.csv, web/e.csv, ...)"
    assert notes(caplog) == [f"source {name}: {told}" for name in ("web", "book")]


@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        (["a.txt", "b.csv"], {}, "set `format: text` to read web/a.txt and the like"),
        (["b.csv", "c.bak"], {}, "there are files of other kinds (web/b.csv, web/c.bak): set `for"),
        (["b.csv"], {"format": "text"}, "there are files of other kinds (web/b.csv)"),
    ],
)
def test_a_folder_without_data_tells_what_it_has(
    tmp_path: Path, names: list[str], settings: Json, told: str
) -> None:
    (tmp_path / "web").mkdir()
    for name in names:
        (tmp_path / "web" / name).write_text("a text")
    with pytest.raises(InputError) as caught:
        listing(Source("s", files=("web",), **settings), tmp_path)
    assert "matches no file (" in str(caught.value)
    assert told in str(caught.value)


def test_an_estimate_tells_what_it_drops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw(tmp_path / "web" / "a.jsonl", [*TEXTS, {"body": "x"}])
    (tmp_path / "web" / "b.csv").write_text("a,b")
    corpora.write_recipe(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(corpora.tokenizer())
    scan(tmp_path, **one(["web"]))
    notes(caplog)
    sampled(recipes.load(tmp_path / "recipe.yaml"), tmp_path)
    assert notes(caplog) == [
        "source web: 1 file of other kinds is not read (web/b.csv)",
        "source web: 1 of 7 records dropped (no_text 1), of 1 file looked at",
    ]


def test_the_command_tells_it_on_stderr_and_ends_well(tmp_path: Path) -> None:
    raw(tmp_path / "web" / "a.jsonl", [*TEXTS * 50, {"body": "x"}])
    (tmp_path / "tokenizer.json").write_bytes(corpora.tokenizer())
    scan(tmp_path, **one(["web"]), rows={"msl": 64})
    command = [sys.executable, "-m", "crystalmix", "build", str(tmp_path / "recipe.yaml"), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "b")], check=False, capture_output=True, text=True
    )
    assert (done.returncode, "dropped" in done.stdout) == (0, False)
    assert "note: source web: 1 of 301 records dropped (no_text 1); " in done.stderr


def test_everything_that_selection_takes_is_as_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    told = notes(caplog)
    assert [line.split(":")[0] for line in told if "records" in line] == ["source web"]
