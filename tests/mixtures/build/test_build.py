"""Builds: the same with any number of workers, nothing lost uncounted, and what is refused."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import laid_out_rows, shuffle
from crystalmix.mixtures.build.build import alone, build
from crystalmix.mixtures.build.context import MARK_TOKENS, batches, once
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from helpers import corpora, laid_out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


def every(out: Path) -> dict[str, receipts.Receipt]:
    """Return the receipts of a build by their folder."""
    found = sorted([*out.glob("sources/*/receipt.json"), *out.glob("domains/*/*/receipt.json")])
    return {path.parent.relative_to(out).as_posix(): receipts.read(path.parent) for path in found}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_build(small: Path, workers: int) -> None:
    root, out = small.parent, small.parent / f"by-{workers}"
    build(recipes.load(root / "recipe.yaml"), root, out, workers=workers)
    assert corpora.contents(out) == corpora.contents(small)


def test_each_kind_of_domain_goes_its_own_way(small: Path) -> None:
    assert set(every(small)) == {
        *(f"sources/{name}" for name in corpora.RECIPE["sources"]),
        *(f"domains/{name}/epoch-0" for name in corpora.RECIPE["domains"]),
        *(f"domains/{name}/shuffled" for name in ("wiki", "web", "code", "python")),
        "domains/code/epoch-1",
        "domains/python/epoch-0-fim",
    }
    drawn = {
        (part.name, Path(shard.path).parent.as_posix())
        for manifest in phases(small).values()
        for part in manifest.parts
        for shard in part.shards
    }
    assert ("book", "domains/book/epoch-0") in drawn
    assert ("python", "domains/python/shuffled") in drawn


def phases(out: Path) -> dict[str, Manifest]:
    return {name: manifests.read(out / "phases" / name) for name in corpora.RECIPE["phases"]}


def test_every_receipt_conserves_what_went_in(small: Path) -> None:
    told = every(small)
    for name, receipt in told.items():
        account, dropped = receipt.account, sum(receipt.account["dropped"].values())
        if name.startswith("sources/"):
            assert account["records"] == account["documents"] + dropped
            continue
        added = account.get("sentinels", 0) + account.get("recut", 0)
        assert account["tokens_in"] + added == account["tokens_out"] + dropped
        msl = corpora.RECIPE["rows"]["msl"]
        assert account["rows"] * msl == account["tokens_out"] + account["padding"]
    for domain, recipe in corpora.RECIPE["domains"].items():
        packed = told[f"domains/{domain}/epoch-0"].account
        texts = [told[f"sources/{source}"].account for source in recipe["sources"]]
        assert packed["documents"] == sum(text["documents"] for text in texts)
        assert packed["controls"] == 2 * packed["documents"] + 3 * packed["permuted"]
        assert packed["text_tokens"] + packed["controls"] == packed["tokens_in"]
    permuted = told["domains/python/epoch-0-fim"].account
    assert permuted["sentinels"] == 3 * permuted["permuted"] > 0
    assert permuted["dropped"]["fim_overflow"] > 0


def test_every_text_can_be_read_again_from_the_rows(small: Path) -> None:
    """Of a domain without FIM: the tokens of its spans, joined, are the texts of its documents."""
    tokenizer = load(TokenizerSettings(str(small / "tokenizer.json")))
    found: dict[int, list[int]] = {}
    folder = small / "domains" / "web" / "epoch-0"
    for name, rows in laid_out.of_folder(folder).items():
        for piece in spans.read(spans.path_of(folder / name)).to_pylist():
            ids = rows[piece["row"], 0, piece["start"] : piece["stop"]].tolist()
            found.setdefault(piece["document"], []).extend(ids)
    table = pq.read_table(small / "sources" / "web" / "documents.parquet")
    assert sorted(found) == table["document"].to_pylist()
    for number, characters in enumerate(table["characters"].to_pylist()):
        first, *ids, last = found[number]
        assert (first, last) == (tokenizer.special["bos"], tokenizer.special["eos"])
        assert len(tokenizer.decode(ids)) == characters


def test_fim_cuts_every_epoch_anew_and_a_shuffle_keeps_every_row(small: Path) -> None:
    folder = small / "domains" / "code"
    cuts = [
        {
            (piece["document"], piece["fim"], piece["cut1"], piece["cut2"])
            for path in sorted((folder / name).glob("*.spans.parquet"))
            for piece in spans.read(path).to_pylist()
        }
        for name in ("epoch-0", "epoch-1")
    ]
    assert len(cuts[0] & cuts[1]) < 0.2 * len(cuts[0])

    packed = laid_out.packed(folder)  # each origin once: no row is lost, none is there twice
    for name in ("epoch-0", "epoch-1"):
        receipt = receipts.read(folder / name)
        assert not [entry for entry in receipt.files if entry["name"].endswith(".h5")]
        for entry in receipt.shards:
            rows = packed.pop(f"{name}/{entry.name}")
            assert len(rows) == entry.rows
            assert sha256(rows.tobytes()).hexdigest() == entry.digest
    assert not packed
    shuffled = [row for path in shards.folder(folder / "shuffled") for row in origins(path)]
    assert shuffled != sorted(shuffled)


@pytest.mark.parametrize(("tokens", "items"), [(64 * 3, 16), (64 * 8 * 5, 1)])
def test_rows_are_the_same_however_many_are_made_at_once(
    small: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, items: int
) -> None:
    monkeypatch.setattr(laid_out_rows, "HELD_TOKENS", tokens)  # parts of a shard, or five shards
    monkeypatch.setattr(shuffle, "ITEMS_A_PROCESS", items)
    root, out = small.parent, small.parent / f"by-{tokens}-tokens"
    build(recipes.load(root / "recipe.yaml"), root, out)
    assert corpora.contents(out) == corpora.contents(small)


def origins(shard: Path) -> list[tuple[str, int]]:
    table = spans.read(spans.path_of(shard, "origin")).to_pylist()
    return [(line["origin"], line["origin_row"]) for line in table]


def test_epochs_that_are_not_shuffled_are_joined_in_order(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    domains = {"code": {"shuffle": False}, "python": {"shuffle": False}}
    corpora.write_recipe(tmp_path, domains=domains)
    out = corpora.built(tmp_path, workers=2)
    folder = out / "domains" / "code"

    joined = [origin for path in shards.folder(folder / "joined") for origin in origins(path)]
    assert joined == sorted(joined)
    assert {name.split("/")[0] for name, _ in joined} == {"epoch-0", "epoch-1"}
    assert not (out / "domains" / "python" / "shuffled").exists()
    assert phases(out)["code"].parts[0].shards[0].path.startswith("domains/python/epoch-0-fim/")
    assert verify(out) == []


def test_the_order_of_parts_in_a_recipe_changes_no_step(small: Path, tmp_path: Path) -> None:
    root, listed = small.parent, corpora.RECIPE["phases"]["prose"]["parts"]
    changed = {"prose": {"parts": listed[::-1]}, "mixed": None, "code": None}
    recipe = recipes.load(corpora.write_recipe(tmp_path, phases=changed), root / "tokenizer.json")
    (other,) = build(recipe, root, tmp_path / "out")
    before = phases(small)["prose"]
    for step in range(before.steps):
        one, two = before.step(step), other.step(step)
        paths = [before.paths[i] for i in one.shard], [other.paths[i] for i in two.shard]
        assert paths[0] == paths[1]
        assert np.array_equal(one.row, two.row)
        assert np.array_equal(one.epoch, two.epoch)


def refused(tmp_path: Path, **changes: Any) -> str:
    """Return the refusal of a recipe with these changes; no manifest may be left."""
    corpora.write_corpus(tmp_path)
    recipe = recipes.load(corpora.write_recipe(tmp_path, **changes))
    with pytest.raises(RefusalError) as caught:
        build(recipe, tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("out/phases/*/manifest.json"))
    return str(caught.value)


def at(tmp_path: Path, line: str, place: str) -> str:
    """Return how a refusal names its place in the recipe."""
    path = tmp_path / "recipe.yaml"
    lines = path.read_text().splitlines()
    return f"{path}:{1 + lines.index(f'    {line}')}: phases.{place}: "


def part(weight: float, domain: str = "web", **more: Any) -> Json:
    return {"domain": domain, "weight": weight, **more}


def phase(*parts: Json, steps: int = 10) -> Json:
    return {"prose": {"steps": steps, "parts": list(parts)}, "mixed": None, "code": None}


def test_more_epochs_than_allowed_are_refused_with_numbers_and_remedy(tmp_path: Path) -> None:
    told = refused(tmp_path, phases=phase(part(1.0, max_epochs=1.5), steps=25))
    assert told == at(tmp_path, "- domain: web", "prose.parts.0") + (
        "part web would be repeated 2.00 times (100 rows asked, 50 there), over "
        "max_epochs 1.5; lower its weight or the steps, add data, or raise max_epochs"
    )
    told = refused(tmp_path / "more", phases=phase(part(1.0), steps=70))
    assert "would be repeated 5.60 times" in told
    assert ", over max_epochs 4 (the default); " in told


def test_a_part_that_gets_no_row_is_refused(tmp_path: Path) -> None:
    told = refused(tmp_path, phases=phase(part(0.999), part(0.001, "book")))
    assert told == at(tmp_path, "- domain: book", "prose.parts.1") + (
        "part book gets none of 40 rows (weight 0.001); "
        "raise its weight or the steps, or leave it out"
    )


def test_an_empty_subset_and_an_empty_half_are_refused(tmp_path: Path) -> None:
    told = refused(tmp_path, phases=phase(part(1.0, subset=[0.5, 0.501])))
    assert told == at(tmp_path, "- domain: web", "prose.parts.0") + (
        "part web-0.5-0.501: is empty: rows 25 to 25 of 50 in 7 shards; "
        "widen the subset, add data or lower rows.rows_per_shard"
    )
    rows = {"rows_per_shard": 4096}
    told = refused(tmp_path / "half", rows=rows, phases=phase(part(1.0, half="odd")))
    assert "parts.0: part web-odd: is empty: rows 0 to 0 of 0 in 0 odd shards; " in told


def test_a_domain_without_a_whole_row_is_refused(tmp_path: Path) -> None:
    told = refused(tmp_path, rows={"msl": 100_000, "tail": "drop"}, phases=phase(part(1.0)))
    assert told == (
        "domain web: 3176 tokens give no whole row of 100000; "
        "add data, lower rows.msl or set rows.tail to keep"
    )


def test_a_source_without_documents_is_refused(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe = recipes.load(
        corpora.write_recipe(tmp_path, sources={"web": {"where": "meta.redpajama_set_name = ''"}})
    )
    with pytest.raises(InputError) as caught:
        build(recipe, tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        "source web: no document is left of 126 records (dropped: where 126); "
        "check `files`, `text`, `where`, `select` and `duplicates`"
    )


def test_an_unknown_phase_is_refused(small: Path) -> None:
    recipe = recipes.load(small.parent / "recipe.yaml")
    with pytest.raises(UsageError) as caught:
        build(recipe, small.parent, small.parent / "none", phases=["prose", "prosa"])
    assert str(caught.value) == "no phase is called 'prosa' (there are prose, mixed, code)"
    assert not (small.parent / "none").exists()


def test_a_folder_that_another_build_is_writing_to_is_refused(small: Path) -> None:
    told = f"{small}: another build is writing here; wait for its end or build into another --out"
    with alone(small), pytest.raises(RefusalError) as caught:
        corpora.built(small.parent)
    assert str(caught.value) == told
    corpora.built(small.parent)


def test_weights_that_do_not_sum_to_one_can_be_normalised(small: Path, tmp_path: Path) -> None:
    root, listed = small.parent, corpora.RECIPE["phases"]["prose"]["parts"]
    parts = [{**each, "weight": 10 * each["weight"]} for each in listed]
    changed = {"prose": {"parts": parts, "normalise": True}, "mixed": None, "code": None}
    recipe = recipes.load(corpora.write_recipe(tmp_path, phases=changed), root / "tokenizer.json")
    (other,) = build(recipe, root, tmp_path / "out")
    before = phases(small)["prose"]
    for name in ("weight", "rows", "shards"):
        assert [getattr(p, name) for p in other.parts] == [getattr(p, name) for p in before.parts]


def test_outputs_of_few_tokens_share_a_mark_and_large_ones_have_their_own() -> None:
    half = MARK_TOKENS // 2
    sizes = [half, half, 1, MARK_TOKENS, 3 * MARK_TOKENS, 1, 1]
    made = [*batches(range(len(sizes)), sizes.__getitem__)]
    assert made == [[0, 1], [2], [3], [4], [5, 6]]
    assert [*batches([], len)] == []


def test_outputs_with_one_mark_are_made_once_until_one_of_them_is_taken_away(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    calls = list[int]()

    def work() -> Json:
        calls.append(len(calls))
        first.touch()
        second.touch()
        return {"number": len(calls)}

    def made(mark: str = "mark", *others: Path) -> int:
        number: int = once(mark, first, work, *(others or (second,)))["number"]
        return number

    assert [made(), made()] == [1, 1]
    assert [path.name for path in tmp_path.glob("*.done")] == ["a.h5.done"]
    second.unlink()
    assert [made(), made()] == [2, 2]
    assert made("another mark") == 3
    assert made("another mark", first) == 4  # other outputs
