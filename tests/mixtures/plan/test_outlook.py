"""Outlook: estimates from a few raw files come near what is built; disk and hours follow."""

from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import shared_texts, shuffle
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.mixtures.plan.outlook import outlook
from crystalmix.mixtures.plan.plan import plan
from crystalmix.mixtures.plan.sample_sources import sampled
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.account_report import fitted_lines
from crystalmix.prep.runtime import receipts, workers
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from helpers import corpora
from helpers.chat import chatty_small, recipe_of
from helpers.materials import raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlook")
    corpora.write_corpus(folder)
    corpora.write_recipe(folder)
    corpora.built(folder)
    return folder


def test_what_is_estimated_is_near_what_is_built(folder: Path) -> None:
    recipe = recipes.load(folder / "recipe.yaml")
    told = sampled(recipe, folder)
    assert set(told) == set(recipe.domains)
    for planned, built in zip(
        plan(recipe, None, told), plan(recipe, folder / "build"), strict=True
    ):
        for guess, fact in zip(planned.parts, built.parts, strict=True):
            assert (guess.known, fact.known) == ("sampled", "built")
            assert guess.available == pytest.approx(fact.available, rel=0.25, abs=3)


def test_conversations_are_estimated_as_their_template_writes_them(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "quartz?"}, {"role": "assistant", "content": "amber."}]
    raw(tmp_path / "talk.jsonl", [{"messages": talk}] * 40)
    (tmp_path / "tokenizer.json").write_bytes(chatty_small())
    for name in ("crystal", "llama-3"):
        path = recipe_of(tmp_path, {"template": name}, {"pack": "best_fit"})
        recipe = recipes.load(path)
        build(recipe, tmp_path, tmp_path / name, workers=1)
        account = receipts.read(tmp_path / name / "domains/talk/epoch-0").account
        assert sampled(recipe, tmp_path) == {"talk": account["tokens_in"]}
    calls = [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]
    raw(tmp_path / "talk.jsonl", [{"messages": talk}, {"messages": [talk[0], *calls]}])
    with pytest.raises(RefusalError, match="source talk: talk.jsonl: message 2 is of role tool_ca"):
        sampled(recipe, tmp_path)


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_what_too_long_leaves_out_is_not_estimated(too_long: str, tmp_path: Path) -> None:
    raw(tmp_path / "x.jsonl", [{"text": "quartz " * words} for words in range(1, 41)])
    (tmp_path / "tokenizer.json").write_bytes(chatty_small())
    content = {
        "name": "fitted",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": {"msl": 32, "pack": "best_fit", "too_long": too_long},
        "sources": {"x": {"files": ["x.jsonl"]}},
        "domains": {"x": {"sources": ["x"]}},
        "phases": {"one": {"batch": 1, "parts": [{"domain": "x", "epochs": 1}]}},
    }
    (tmp_path / "recipe.yaml").write_text(orjson.dumps(content).decode())
    recipe = recipes.load(tmp_path / "recipe.yaml")
    build(recipe, tmp_path, tmp_path / "out", workers=1)
    account = receipts.read(tmp_path / "out/domains/x/epoch-0").account
    assert account["dropped"]["too_long"] > 0
    assert sampled(recipe, tmp_path)["x"] == pytest.approx(account["tokens_out"], abs=5)
    word = {"truncate": "shortened", "drop": "left out"}[too_long]
    [line] = fitted_lines(tmp_path / "out")[-1:]
    assert f"% {word} " in line


def test_a_sample_a_limit_and_a_side_of_a_split_make_less_of_it(folder: Path) -> None:
    whole = sampled(recipes.load(folder / "recipe.yaml"), folder)
    path = corpora.write_recipe(
        folder,
        valid=0.25,
        sources={"web": {"select": {"sample": 0.5}}, "wiki": {"select": {"limit": 1}}},
        domains={"book": {"split": "valid"}},
    )
    less = sampled(recipes.load(path), folder)
    corpora.write_recipe(folder)
    assert less["web"] == pytest.approx(whole["web"] / 2, rel=0.01)
    assert less["book"] == pytest.approx(whole["book"] / 4, rel=0.01)
    assert 0 < less["wiki"] < whole["wiki"] / 5


def test_the_disk_is_what_was_written_and_hours_are_tokens_over_speed(folder: Path) -> None:
    out = folder / "build"
    told = outlook(str(folder / "recipe.yaml"), out, None, 1000.0)
    sizes = [
        shard.bytes or 0
        for path in out.glob("domains/*/*/receipt.json")
        for shard in rows_files(receipts.read(path.parent))
    ]
    assert told.disk == sum(sizes)
    assert told.hours == tuple(phase.tokens / 3.6e6 for phase in told.phases)
    guess = outlook(str(folder / "recipe.yaml"), None, folder, None)
    assert guess.disk is not None
    assert 0 < guess.disk < sum(sizes)  # files of eight rows are mostly HDF5
    assert outlook(str(folder / "recipe.yaml"), None, None, None).disk is None


def test_what_lies_beside_the_shards_of_two_passes_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = outlook(str(folder / "recipe.yaml"), None, folder, None)
    assert guess.passing is None
    assert "passing" not in guess.content()
    monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    guess = outlook(str(folder / "recipe.yaml"), None, folder, None)
    assert guess.passing is not None
    assert guess.disk is not None
    assert guess.passing.domain == "code"  # the largest
    assert guess.disk / 4 < guess.passing.bytes < guess.disk
    assert guess.content()["passing"] == {"domain": "code", "bytes": guess.passing.bytes}
    assert any(" more while code is shuffled (in two passes, above 2 " in x for x in guess.lines())
    built = outlook(str(folder / "recipe.yaml"), folder / "build", folder, None)
    assert built.passing is None
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 1 << 26)  # a few items hold all of it
    assert outlook(str(folder / "recipe.yaml"), None, folder, None).passing is None


def test_domains_with_texts_in_common_are_told(folder: Path) -> None:
    digests = {
        name: set(pq.read_table(path, columns=["digest"])["digest"].to_pylist())
        for name in ("code", "python", "book")
        if (path := folder / "build" / "sources" / name / "documents.parquet").exists()
    }
    told = outlook(str(folder / "recipe.yaml"), folder / "build", None, None)
    count = len(digests["code"] & digests["python"])
    assert count == len(digests["python"]) > 0
    line = f"phase code: domains code and python have {count:,} texts in common, 100.0% of python's"
    assert told.shared.notes == (line,)
    assert not told.faulty
    assert f"note: {line}" in told.lines()
    assert outlook(str(folder / "recipe.yaml"), None, None, None).shared.notes == ()


def test_processes_that_are_asked_for_look_for_shared_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, pool = list[int](), workers.Fanout

    def noted(processes: int) -> workers.Fanout:
        asked.append(processes)
        return pool(processes)

    monkeypatch.setattr(shared_texts, "Fanout", noted)
    words = str(folder / "recipe.yaml"), folder / "build", None, None
    assert outlook(*words, workers=2).shared == outlook(*words).shared
    assert asked == [2, 1]


def test_the_command_line_tells_disk_and_hours(folder: Path) -> None:
    words = ("plan", folder / "recipe.yaml", "--data", folder, "--speed", 2500)
    told = corpora.crystalmix(*words)
    assert told.exit_code == 0, told.stderr
    assert "sampled" in told.stdout
    assert "shards on disk: about " in told.stdout
    assert "hours of training: 0.0011 (prose under 0.001, mixed under 0.001, " in told.stdout
    content = orjson.loads(corpora.crystalmix(*words, "--json").stdout)
    assert [phase["name"] for phase in content["phases"]] == ["prose", "mixed", "code"]
    assert len(content["hours"]) == 3
    with pytest.raises(UsageError, match="--speed: must be positive, got -1"):
        outlook(str(folder / "recipe.yaml"), None, None, -1.0)
