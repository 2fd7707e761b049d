"""Decontamination: a shared run of words drops a document; counting and short runs do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import decontaminate
from crystalmix.prep.filters.decontaminate import (
    Decontaminate,
    EvaluationFile,
    Index,
    IndexCounts,
)
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, RecipeError
from helpers.materials import raw

QUESTION = (
    "Natalia sold clips to forty eight of her friends in April and then she sold half as many "
    "clips in May. How many clips did Natalia sell altogether?"
)
ANSWER = "She sold twenty four in May, which makes seventy two clips in April and May together."
WORDS = [
    "quartz",
    "amber",
    "ember",
    "willow",
    "thicket",
    "copper",
    "lantern",
    "harbour",
    "meadow",
    "signal",
]


def index(root: Path, **fields: Any) -> Index:
    asked = Decontaminate(**{"files": ("evals",), **fields})
    decontaminate.write_index(asked, root, root / "index.npy")
    return Index(root / "index.npy", asked.lengths)


def evals(root: Path) -> Path:
    raw(root / "evals" / "b.jsonl.zst", [{"question": QUESTION, "answer": ANSWER, "id": 7}])
    raw(root / "evals" / "a.parquet", [{"prompt": " ".join(WORDS * 2), "choices": ["x", ANSWER]}])
    (root / "evals" / "c.txt").write_text("Line one of a poem\nwithout any end " + QUESTION[::-1])
    (root / "evals" / "notes.md").write_text("no evaluation")
    return root


def test_a_document_that_holds_a_run_of_an_evaluation_is_told_with_its_file(tmp_path: Path) -> None:
    found = index(evals(tmp_path))
    files = decontaminate.files(Decontaminate(files=("evals",)), tmp_path)
    assert files == ["evals/a.parquet", "evals/b.jsonl.zst", "evals/c.txt"]
    inside = QUESTION.upper().replace(" ", "\n")
    texts = [
        f"A page about {inside} and more",
        ANSWER,
        QUESTION[: len(QUESTION) // 4],
        "",
        QUESTION[::-1],
    ]
    assert found.hits(texts).tolist() == [1, 0, -1, -1, 2]


def test_columns_choose_what_counts(tmp_path: Path) -> None:
    evals(tmp_path)
    only = {"files": ("evals/b.jsonl.zst",)}
    assert index(tmp_path, **only).hits([QUESTION, ANSWER]).tolist() == [0, 0]
    asked = {**only, "columns": ("answer",)}
    assert index(tmp_path, **asked).hits([QUESTION, ANSWER]).tolist() == [-1, 0]
    nested = {"files": ("n.jsonl",), "columns": ("a.b",)}
    raw(tmp_path / "n.jsonl", [{"a": {"b": [ANSWER]}, "c": QUESTION}])
    assert index(tmp_path, **nested).hits([QUESTION, ANSWER]).tolist() == [-1, 0]


def test_counting_and_repeating_are_no_contamination(tmp_path: Path) -> None:
    numbers = " ".join(str(i) for i in range(1, 60))
    letters = " ".join("abcdefghijklmnopqrstuvwxyz")
    chorus = "na na na na hey hey goodbye " * 9
    raw(tmp_path / "evals" / "a.jsonl", [{"t": t} for t in (numbers, letters, chorus, ANSWER)])
    assert index(tmp_path).hits([numbers, letters, chorus, ANSWER]).tolist() == [-1, -1, -1, 0]
    assert index(tmp_path, distinct=1).hits([numbers, letters, chorus]).tolist() == [0, 0, 0]
    assert index(tmp_path, distinct=3).hits([numbers, letters, chorus]).tolist() == [-1, -1, 0]


def test_what_protects_nothing_is_counted(tmp_path: Path) -> None:
    raw(
        tmp_path / "evals" / "a.jsonl", [{"q": "too short", "a": ANSWER}, {"q": "1 " * 20, "a": ""}]
    )
    asked = Decontaminate(files=("evals",))
    counts = decontaminate.write_index(asked, tmp_path, tmp_path / "index.npy")
    runs = len(ANSWER.split()) - 12
    files = (EvaluationFile("evals/a.jsonl", items=2, protected=1, short=0),)
    assert counts == IndexCounts(texts=4, runs=runs, short=2, plain=8, files=files)


SHORT = (
    "What happens to you if you eat watermelon seeds?",  # 9 words
    "Who wrote the song Imagine?",  # 5
    "Is it true?",  # 3
    "no no no no no no",  # 6, all the same
)


def test_short_items_are_counted_by_file_and_may_be_matched_whole(tmp_path: Path) -> None:
    rows = [{"question": text, "choices": ["yes", "no"]} for text in SHORT]
    raw(tmp_path / "evals" / "short.jsonl", [*rows, {"question": QUESTION}, {"id": 7}])
    raw(tmp_path / "evals" / "long.jsonl", [{"question": ANSWER}])
    skip, whole = (Decontaminate(files=("evals",), short=rule) for rule in ("skip", "whole"))
    counts = decontaminate.write_index(skip, tmp_path, tmp_path / "index.npy")
    assert counts.files == (
        EvaluationFile("evals/long.jsonl", items=1, protected=1, short=0),
        EvaluationFile("evals/short.jsonl", items=5, protected=1, short=4),
    )
    more = decontaminate.write_index(whole, tmp_path, tmp_path / "index.npy")
    assert more.files[1] == EvaluationFile("evals/short.jsonl", items=5, protected=3, short=2)
    pages = [f"A page says: {text.lower()} And more." for text in (*SHORT, QUESTION, "yes no")]
    assert index(tmp_path).hits(pages).tolist() == [-1, -1, -1, -1, 1, -1]
    assert index(tmp_path, short="whole").hits(pages).tolist() == [1, 1, -1, -1, 1, -1]
    part = "What happens if you eat watermelon seeds?"
    assert index(tmp_path, short="whole").hits([part, SHORT[1]]).tolist() == [-1, 1]


def test_settings_without_the_rule_are_those_of_before() -> None:
    before = {"files": ("evals",), "columns": (), "ngram": 13, "distinct": 8}
    assert Decontaminate(files=("evals",)).content() == before
    assert Decontaminate(files=("evals",), short="whole").content() == {**before, "short": "whole"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_hit_is_a_run_in_common_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("evals")
    size = data.draw(st.integers(1, 4))
    words = st.lists(st.sampled_from(WORDS), max_size=12)
    asked, texts = data.draw(st.lists(words, max_size=4)), data.draw(st.lists(words, max_size=6))
    raw(root / "evals" / "a.jsonl", [{"t": " ".join(each)} for each in [WORDS, *asked]])

    def runs(each: list[str]) -> set[tuple[str, ...]]:
        return {tuple(each[i : i + size]) for i in range(len(each) - size + 1)}

    known = set().union(*map(runs, [WORDS, *asked]))
    expected = [0 if runs(each) & known else -1 for each in texts]
    found = index(root, ngram=size, distinct=1)
    assert found.hits([", ".join(each) for each in texts]).tolist() == expected


def test_an_index_of_nothing_hits_nothing(tmp_path: Path) -> None:
    raw(tmp_path / "evals" / "a.jsonl", [{"q": "too short"}])
    assert index(tmp_path).hits([ANSWER, QUESTION, ""]).tolist() == [-1, -1, -1]


def test_many_runs_are_found_again(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.Philox(3))
    lines = [" ".join(f"w{i}" for i in rng.integers(0, 10**6, 40)) for _ in range(500)]
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "a.txt").write_text("\n".join(lines))
    found = index(tmp_path)
    assert found.hits(lines).tolist() == [0] * 500
    assert (found.hits([line[::-1] for line in lines]) == -1).all()


@pytest.mark.parametrize(
    ("name", "content", "fields", "told"),
    [
        ("a.jsonl", b'{"q": 1', {}, "a.jsonl:1: is no JSON"),
        ("a.jsonl", b'{"q": 1}\n', {}, "a.jsonl: has no text in any column"),
        ("a.jsonl", b'{"q": "a"}\n', {"columns": ("z",)}, "a.jsonl: has no text in z"),
        ("a.parquet", b"PAR1", {}, "a.parquet: can't be read as parquet"),
        ("a.txt", b"\xff", {}, "a.txt: is not UTF-8"),
        ("a.csv", b"q", {}, "evals: matches no evaluation file"),
    ],
)
def test_evaluation_files_that_cant_be_read_are_told(
    tmp_path: Path, name: str, content: bytes, fields: Any, told: str
) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        index(tmp_path, **fields)


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ({"files": ()}, "files: must name at least one"),
        ({"ngram": 0}, "ngram: must be positive, got 0"),
        ({"ngram": 5}, r"distinct: must lie in \[1, 5\], got 8"),
    ]
    for fields, told in cases:
        with pytest.raises(ValueError, match=told):
            Decontaminate(**{"files": ("a",), **fields})
    with pytest.raises(CrystalmixError, match="is absolute; give it relative") as caught:
        decontaminate.files(Decontaminate(files=(str(tmp_path),)), tmp_path)
    assert isinstance(caught.value, RecipeError)
