"""Domains whose documents are taken as often as a curve over a number of theirs asks."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from tokenizers import Tokenizer

import crystalmix as cm
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.report import manifest_lines
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.mixtures.verify.account_report import copies_lines
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import InputError, RecipeError, RefusalError
from crystalmix.prep.runtime.types import Json
from helpers import corpora, laid_out
from helpers.graded import CURVE, Record, records, wanted, written
from helpers.materials import raw, small


@pytest.fixture(scope="module")
def upsampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("upsampled")
    written(root)
    return corpora.built(root)


def decoded(out: Path, epoch: int) -> list[str]:
    """Return the texts of an epoch's rows, found by BOS and EOS alone."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    begin, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    rows = laid_out.of_folder(out / f"domains/rated/epoch-{epoch}")
    ids = np.concatenate([some[:, 0].reshape(-1) for some in rows.values()])
    assert (ids == begin).sum() == (ids == end).sum()
    pieces = np.split(ids, np.flatnonzero(ids == begin))[1:]
    return [
        tokenizer.decode(piece[1 : np.flatnonzero(piece == end)[0]].tolist()) for piece in pieces
    ]


def test_rows_hold_each_text_as_often_as_the_curve_asks(upsampled: Path) -> None:
    epochs = sorted((upsampled / "domains/rated").glob("epoch-*"))
    found = Counter(text for epoch in range(len(epochs)) for text in decoded(upsampled, epoch))
    expected = wanted(records())
    assert found == +Counter(expected)
    assert len(epochs) == max(expected.values()) == 4
    for epoch in range(len(epochs)):
        assert max(Counter(decoded(upsampled, epoch)).values()) == 1
    shuffled = sum(map(len, map(shards.read, shards.folder(upsampled / "domains/rated/shuffled"))))
    packed = [rows for place in epochs for rows in laid_out.of_folder(place).values()]
    assert shuffled == sum(map(len, packed))


def test_manifest_receipts_and_views_say_what_was_asked_and_got(upsampled: Path) -> None:
    [sealed] = manifests.read_manifests(upsampled)
    said = sealed.parts[0].upsampling
    assert said is not None
    assert (said["by"], said["curve"], said["missing"]) == ("quality", CURVE, 1)
    counts, expected = said["sources"]["rated"], wanted(records())
    assert (counts["documents"], counts["missing"], counts["most"]) == (90, 10, 4)
    buckets = counts["buckets"]
    assert sum(bucket["copies"] for bucket in buckets) + 10 == sum(expected.values())
    assert sum(bucket["documents"] for bucket in buckets) == 80
    assert all(abs(b["copies"] - b["asked"] * b["documents"]) < 1.001 for b in buckets)
    sizes = {text: len(text.encode()) * times for text, times in expected.items()}
    texts = {record["text"] for record in records() if record["quality"] is not None}
    assert sum(bucket["bytes"] for bucket in buckets) == sum(sizes[text] for text in texts)
    accounts: list[Json] = [
        receipts.read(upsampled / f"domains/rated/epoch-{epoch}").account for epoch in range(4)
    ]
    assert [account["documents"] + account["spent"] for account in accounts] == [90] * 4
    assert sum(account["documents"] for account in accounts) == sum(expected.values())
    rows = cm.Build(upsampled).sql(
        'SELECT document, count(DISTINCT shard || "row") AS times FROM packed '
        'WHERE "offset" = 0 GROUP BY document'
    )
    assert sorted(row["times"] for row in rows.content()) == sorted(filter(None, expected.values()))


def test_plan_and_show_have_a_table_with_bars(upsampled: Path) -> None:
    recipe = upsampled.parent / "recipe.yaml"
    before, after = cm.plan(recipe), cm.plan(recipe, out=upsampled, data=upsampled.parent)
    assert before.copies[0].asked[8] == 1.125
    assert before.copies[0].mean == 1.5
    lines = before.lines()
    assert "rated: documents by quality are taken 1.500 times on average, 4 at most" in lines[4]
    assert any(line.split() == ["95-100", "%", "3.875", "#" * 24] for line in lines)
    assert not any("no number" in line for line in lines)
    assert any("no number" in line for line in after.lines())
    assert after.reuse is not None
    assert {step.state for step in after.reuse.steps} == {"reused"}
    assert len(after.reuse.steps) == 1 + 4 + 1 + 1  # documents, epochs, shuffled rows, phase
    assert copies_lines(upsampled)[2:] == list(after.copies[0].lines())[1:]
    told = "\n".join(manifest_lines(manifests.read_manifests(upsampled)[0]))
    total = sum(wanted(records()).values())
    assert f"upsampled: rated by quality, {total} copies of 90 documents, at most 4 of one" in told


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_build(upsampled: Path, workers: int) -> None:
    out = upsampled.parent / f"by-{workers}"
    build(recipes.load(upsampled.parent / "recipe.yaml"), upsampled.parent, out, workers=workers)
    assert corpora.contents(out) == corpora.contents(upsampled)


def test_a_sound_build_verifies_and_a_forged_count_does_not(
    upsampled: Path, tmp_path: Path
) -> None:
    assert verify(upsampled) == []
    shutil.copytree(upsampled, tmp_path / "build", symlinks=True)
    place = tmp_path / "build/phases/main/manifest.json"
    sealed = manifests.read(place)
    forged = {**(sealed.parts[0].upsampling or {}), "missing": 2}
    parts = (replace(sealed.parts[0], upsampling=forged),)
    manifests.write(place, manifests.sealed(replace(sealed, parts=parts)))
    folder = tmp_path / "build/domains/rated/epoch-1"
    receipt = read_json(folder / receipts.NAME)
    receipt["account"]["upsampled"]["rated"]["buckets"][-1]["copies"] += 1
    receipt["digest"] = receipts.digest({k: v for k, v in receipt.items() if k != "digest"})
    (folder / "receipt.json").write_bytes(orjson.dumps(receipt))
    faults = "\n".join(verify(tmp_path / "build"))
    assert "part rated: says other copies of documents than its rows were made with" in faults
    assert "epoch-1/receipt.json: its copies of rated are not those that its documents" in faults


def test_copies_are_not_counted_again_once_a_document_was_purged(
    upsampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(upsampled, tmp_path / "build", symlinks=True)
    best = "ORDER BY CAST(quality AS DOUBLE) DESC NULLS LAST LIMIT 1"
    best = f"SELECT lower(hex(digest)) AS text FROM documents {best}"
    [text] = map(str, cm.Build(out).sql(best)["text"])
    (tmp_path / "list").write_text(f"{text}\n", "utf-8")
    cm.purge(out, tmp_path / "list", erase=True)
    monkeypatch.chdir(tmp_path)  # a path that is no whole one
    notes: list[str] = []
    assert verify(Path("build"), note=notes.append) == []
    assert [n for n in notes if "not counted again: documents of rated are purged" in n]
    assert not [n for n in notes if "of no build and not read" in n]


def test_no_row_of_best_fit_holds_a_document_twice_and_cuts_are_fresh(tmp_path: Path) -> None:
    rows = {"pack": "best_fit", "documents": "masked"}
    fim = {"fim": {"rate": 1.0}}
    recipe = recipes.load(written(tmp_path, rows=rows, domains={"rated": fim}))
    build(recipe, tmp_path, tmp_path / "build", workers=1)
    assert verify(tmp_path / "build") == []
    cuts: dict[int, set[tuple[int, int]]] = {}
    times: Counter[int] = Counter()
    for path in sorted((tmp_path / "build").glob("domains/rated/epoch-*/*.spans.parquet")):
        pieces = spans.read(path).to_pylist()
        begun = [(p["row"], p["document"]) for p in pieces if p["offset"] == 0]
        assert len(set(begun)) == len(begun)
        for piece in pieces:
            if piece["offset"] == 0:
                times[piece["document"]] += 1
                cuts.setdefault(piece["document"], set()).add((piece["cut1"], piece["cut2"]))
    assert sorted(times.values()) == sorted(filter(None, wanted(records()).values()))
    assert sum(map(len, cuts.values())) > 0.9 * times.total()


def test_a_split_ranks_the_documents_of_its_side(tmp_path: Path) -> None:
    train = {"rated": {"split": "train"}, "held": {"sources": ["rated"], "split": "valid"}}
    held = {"steps": 1, "batch": 2, "parts": [{"domain": "held", "weight": 1}]}
    path = written(tmp_path, valid=0.3, domains=train, phases={"held": held})
    build(recipes.load(path), tmp_path, tmp_path / "build", workers=1)
    assert verify(tmp_path / "build") == []
    account = receipts.read(tmp_path / "build/domains/rated/epoch-0").account
    assert account["documents"] + account["spent"] + account["held_out"] == 90
    assert account["held_out"] > 10
    counts = account["upsampled"]["rated"]
    assert counts["documents"] == 90 - account["held_out"]
    assert sum(b["copies"] for b in counts["buckets"]) == pytest.approx(
        1.5 * (counts["documents"] - counts["missing"]), abs=1
    )


def test_a_changed_curve_keeps_what_it_does_not_touch(tmp_path: Path) -> None:
    path = written(tmp_path)
    out = corpora.built(tmp_path)
    [before] = manifests.read_manifests(out)
    blocks = {p.name for p in (out / "store/blocks").rglob("*.parquet")}
    changed = recipes.load(path, overrides=["domains.rated.upsample.missing=2"])
    [sealed] = build(changed, tmp_path, out, workers=1)
    assert sealed.parts[0].available > before.parts[0].available
    assert {p.name for p in (out / "store/blocks").rglob("*.parquet")} == blocks
    assert verify(out) == []
    fresh = build(changed, tmp_path, tmp_path / "fresh", workers=1)
    assert [m.digest for m in fresh] == [sealed.digest]


def test_a_mixture_takes_copies_as_they_are(upsampled: Path, tmp_path: Path) -> None:
    recipe = upsampled.parent / "recipe.yaml"
    settings = recipes.load(recipe, overrides=["phases.main.steps=3", "name=other"])
    mixed = mix(settings, upsampled)
    assert verify(mixed) == []
    [sealed], [origin] = manifests.read_manifests(mixed), manifests.read_manifests(upsampled)
    assert sealed.parts[0].upsampling == origin.parts[0].upsampling
    plain = written(tmp_path, domains={"rated": {"upsample": None}})
    with pytest.raises(RefusalError, match=r"domain rated: was built otherwise \(upsample"):
        mix(recipes.load(plain), upsampled, "plain")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"sources": {"rated": {"keep": []}}},
            r"domains.rated.upsample.by: source rated keeps no column 'quality'; add it to",
        ),
        (
            {"domains": {"rated": {"upsample": {"curve": [[0, 1], [1, 7]]}}}},
            r"parts.0.max_epochs: documents of rated are repeated up to 7 times by its upsample, "
            "over 4; lower the curve or raise max_epochs",
        ),
        ({"domains": {"rated": {"epochs": 2}}}, "epochs: follow from the curve of upsample"),
        ({"domains": {"rated": {"held_out": True}}}, "upsample: repeats what is there to valid"),
        ({"rows": {"cerebras": {}}}, "domains.rated.upsample: can't go with rows.cerebras"),
        (
            {"domains": {"rated": {"upsample": {"curve": [[0, 1]]}}}},
            "upsample.curve: must name at least 2",
        ),
    ],
)
def test_what_cannot_be_met_is_refused_with_its_line(
    tmp_path: Path, changes: Record, says: str
) -> None:
    with pytest.raises(RecipeError, match=rf"recipe.yaml:\d+: .*{says}"):
        recipes.load(written(tmp_path, **changes))


@pytest.mark.parametrize("value", ["high", "inf", True])
def test_a_value_that_is_no_number_is_named_with_its_record(tmp_path: Path, value: object) -> None:
    every = records()
    every[7]["quality"] = value
    recipe = recipes.load(written(tmp_path, every))
    says = r"source rated: rated-1.jsonl record 3: quality must be a finite number or missing, got"
    with pytest.raises(InputError, match=says):
        build(recipe, tmp_path, tmp_path / "build", workers=1)


def test_epochs_times_copies_stay_within_max_epochs(tmp_path: Path) -> None:
    path = written(tmp_path, phases={"main": {"steps": 100}})
    says = r"part rated would repeat documents up to \d+.\d\d times \(4 copies, .* epochs\), over"
    with pytest.raises(RefusalError, match=says):
        build(recipes.load(path), tmp_path, tmp_path / "build", workers=1)
    planned = cm.plan(path, data=tmp_path)
    assert any("would repeat documents up to" in line for line in planned.phases[0].refusals)


def test_a_curve_that_gives_no_document_a_copy_is_refused(tmp_path: Path) -> None:
    none = {"curve": [[0, 0], [0.999, 0], [1, 0.1]], "missing": 0}
    recipe = recipes.load(written(tmp_path, domains={"rated": {"upsample": none}}))
    with pytest.raises(RefusalError, match="domain rated: its curve gives none of its documents"):
        build(recipe, tmp_path, tmp_path / "build", workers=1)


def test_equal_rows_of_copies_are_said_to_be_copies(tmp_path: Path) -> None:
    raw(tmp_path / "x.jsonl", [{"q": i, "text": f"{i} quartz " * 90} for i in range(4)])
    (tmp_path / "tokenizer.json").write_bytes(small().raw)
    content = {
        "name": "twice",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": {"msl": 32, "pack": "best_fit"},
        "sources": {"x": {"files": ["x.jsonl"], "keep": ["q"]}},
        "domains": {"x": {"sources": ["x"], "upsample": {"by": "q", "curve": [[0, 2], [1, 2]]}}},
        "phases": {"one": {"batch": 1, "parts": [{"domain": "x", "epochs": 1}]}},
    }
    (tmp_path / "recipe.yaml").write_bytes(orjson.dumps(content))
    build(recipes.load(tmp_path / "recipe.yaml"), tmp_path, tmp_path / "build", workers=1)
    notes: list[str] = []
    assert verify(tmp_path / "build", note=notes.append) == []
    [told] = [note for note in notes if "shuffled" in note and "equal to another" in note]
    assert told.endswith(": `upsample` takes documents several times")
