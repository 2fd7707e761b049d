"""What a build tells of its sources, counted anew from its rows; literals; sampled documents.

Tallies of parts are those of the whole, and cut documents are counted one by one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.build import accounts, pack
from crystalmix.mixtures.build.accounts import Lengths
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify import account_report
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers import corpora
from helpers.materials import raw, small

TEXTS = [
    "the quick <s> brown </s> fox <s>",
    "def f(x):\n    return x\n" * 30,
    "<unk> a",
    "plain < text",
    "日本語 text",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("counted"))


def made(folder: Path, workers: int = 1, **changes: Json) -> Path:
    """Build TEXTS as one domain; return the build."""
    (folder / "tokenizer.json").write_bytes(small().raw)
    raw(folder / "a.jsonl", [{"text": text, "repo": "a/b"} for text in TEXTS])
    content: Json = {
        "name": "told",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json", **changes.get("tokenizer", {})},
        "rows": {"msl": 32, **changes.get("rows", {})},
        "sources": {"all": {"files": ["a.jsonl"], **changes.get("source", {})}},
        "domains": {"all": {"sources": ["all"], "shuffle": False, **changes.get("domain", {})}},
        "phases": {
            "one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]},
        },
    }
    (folder / "recipe.yaml").write_bytes(orjson.dumps(content))
    build(recipes.load(folder / "recipe.yaml"), folder, folder / "out", workers=workers)
    return folder / "out"


def account(out: Path, domain: str = "all") -> Json:
    return receipts.read(out / "domains" / domain / "epoch-0").account


def test_literals_are_counted_and_stay_text(tmp_path: Path) -> None:
    out = made(tmp_path)
    told = account(out)
    assert told["literals"] == {"</s>": [1, 1], "<s>": [1, 2], "<unk>": [1, 1]}
    assert told["controls"] == 2 * len(TEXTS)
    lines = account_report.statistics_lines(out)
    assert any(line.split() == ["domains/all/epoch-0", "<s>", "1", "2"] for line in lines)
    assert verify(out) == []


def test_what_is_told_of_a_source_is_what_its_rows_hold(built: Path) -> None:
    for domain in ("wiki", "web", "code"):
        told = account(built, domain)
        [(source, counts)] = told["sources"].items()
        pieces = [
            piece
            for path in sorted((built / "domains" / domain / "epoch-0").glob("*.spans.parquet"))
            for piece in spans.read(path).to_pylist()
        ]
        tokens: dict[int, int] = {}
        rows: dict[int, int] = {}
        forms: dict[int, int] = {}
        for piece in pieces:
            number = piece["document"]
            tokens[number] = tokens.get(number, 0) + piece["stop"] - piece["start"]
            rows[number] = rows.get(number, 0) + 1
            forms[number] = piece["fim"]
        documents = pq.read_table(built / "sources" / source / "documents.parquet")
        assert counts["documents"] == len(tokens) == len(documents)
        assert counts["tokens"] == sum(tokens.values()) == told["tokens_in"]
        assert counts["bytes"] == sum(documents["bytes"].to_numpy())
        assert counts["bytes_per_token"] == round(counts["bytes"] / counts["text_tokens"], 4)
        assert counts["cut"] == sum(count > 1 for count in rows.values())
        assert counts["psm"] + counts["spm"] == told["permuted"]
        assert counts["psm"] == sum(form == 1 for form in forms.values())
        sizes = np.sort(np.array(list(tokens.values())))
        assert counts["lengths"]["max"] == sizes[-1]
        assert counts["lengths"]["p50"] == sizes[-(-len(sizes) // 2) - 1]


def test_the_lengths_of_a_sources_documents_are_told(built: Path) -> None:
    receipt = receipts.read(built / "sources" / "web")
    documents = pq.read_table(built / "sources" / "web" / "documents.parquet")
    told = receipt.account["lengths"]
    assert told["bytes"]["max"] == max(documents["bytes"].to_numpy())
    assert told["characters"]["min"] == min(documents["characters"].to_numpy())


def test_a_sampled_document_that_differs_stops_the_build_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "sound"
    sound.mkdir()
    assert verify(made(sound, tokenizer={"verify_every": 1})) == []
    plain = Tokenizer.encode

    def wrong(self: Tokenizer, text: str) -> Any:
        ids = plain(self, text)
        return ids[::-1] if text == TEXTS[3] else ids

    monkeypatch.setattr(Tokenizer, "encode", wrong)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(
        InputError,
        match=r"^source all: a.jsonl: document 3: gigatoken gives other ids .*another --out",
    ):
        made(other, tokenizer={"verify_every": 1})
    assert not (other / "out" / "domains" / "all" / "epoch-0" / receipts.NAME).exists()


@pytest.mark.parametrize("backend", ["tokenizers", "fastokens"])
def test_the_library_that_encodes_changes_no_digest(tmp_path: Path, backend: str) -> None:
    if backend == "fastokens":
        pytest.importorskip("fastokens")
    for name in ("auto", backend):
        (tmp_path / name).mkdir()
    first = made(tmp_path / "auto")
    second = made(tmp_path / backend, tokenizer={"backend": backend, "verify_every": 3})
    told = [receipts.read(out / "domains" / "all" / "epoch-0") for out in (first, second)]
    assert told[0].digest == told[1].digest
    manifests = [(out / "phases" / "one" / "manifest.json").read_bytes() for out in (first, second)]
    assert manifests[0] == manifests[1]


def test_metadata_from_a_kept_column_reaches_the_rows(tmp_path: Path) -> None:
    source = {"metadata": ["<unk>=repo"], "keep": ["repo"]}
    told = account(made(tmp_path, source=source))
    assert told["controls"] == 3 * len(TEXTS)


def test_metadata_that_the_tokenizer_lacks_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:1: sources.all.metadata: '<reponame>' is no added token"
    ):
        made(tmp_path, source={"metadata": ["<reponame>"]})


lengths = st.lists(st.integers(0, 40), max_size=60)


@given(parts=st.lists(lengths, min_size=1, max_size=5))
def test_quantiles_are_exact_however_the_lengths_come(parts: list[list[int]]) -> None:
    tally = Lengths()
    for part in parts:
        tally.add(np.array(part, np.int64))
    every = sorted(length for part in parts for length in part)
    if not every:
        assert tally.account() == {}
        return
    told = tally.account()
    assert (told["min"], told["max"]) == (every[0], every[-1])
    for percent in accounts.PERCENT:
        found = told[f"p{percent}"]
        at_most = sum(length <= found for length in every)
        below = sum(length < found for length in every)
        assert 100 * at_most >= percent * len(every) > 100 * below or (below == 0 <= at_most)


@given(sizes=lengths, msl=st.integers(1, 12), dropped=st.booleans())
def test_cut_documents_are_those_in_more_than_one_row(
    sizes: list[int], msl: int, dropped: bool
) -> None:
    total = sum(sizes)
    stop = (total - 1) // msl * msl if dropped and total else -(-total // msl) * msl
    cut, place = 0, 0
    for size in sizes:
        rows = {token // msl for token in range(place, place + size) if token < stop}
        lost = bool(rows) and place + size > stop
        cut += len(rows) > 1 or lost
        place += size
    array = np.array(sizes, np.int64)
    assert pack.cut_documents(array, 0, stop, msl) == cut
    # Block by block it is the same.
    half = len(sizes) // 2
    first = pack.cut_documents(array[:half], 0, stop, msl)
    second = pack.cut_documents(array[half:], sum(sizes[:half]), stop, msl)
    assert first + second == cut


def test_the_documents_of_a_file_are_told_by_characters_and_bytes(tmp_path: Path) -> None:
    table = pa.table({"characters": [3, 1, 2], "bytes": [4, 1, 6], "other": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "documents.parquet", row_group_size=1)
    told = accounts.of_documents(tmp_path / "documents.parquet")
    assert told["characters"] == {
        "min": 1, "p1": 1, "p10": 1, "p50": 2, "p90": 3, "p99": 3, "max": 3
    }  # fmt: skip
    assert (told["bytes"]["min"], told["bytes"]["max"]) == (1, 6)
