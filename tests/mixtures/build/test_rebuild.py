"""Building again: what is fresh is skipped, what a change touches is made, what was stays."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import pack
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest
from crystalmix.mixtures.manifest.build_folder import MANIFEST
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.upkeep.collect import collect
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.documents import source as sources
from crystalmix.prep.readers import files as rawfiles
from crystalmix.prep.rows.shards import read as read_rows
from crystalmix.prep.rows.shards import write as write_rows
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.prep.store import store
from helpers import corpora, runs

PYTHON = "starcoderdata/python/train-00000-of-00002.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of a corpus, its recipe and its build."""
    return runs.copied_corpus(tmp_path / "copy")


def times(out: Path) -> dict[str, int]:
    """Return when each file of a build was written; digests of raw files are told apart."""
    paths = (path for path in out.rglob("*") if not path.is_relative_to(out / "store" / "files"))
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}


def again(folder: Path, *phases: str, **changes: Any) -> list[Manifest]:
    """Build with a changed recipe."""
    path = corpora.write_recipe(folder, **changes)
    return build(recipes.load(path), folder, folder / "build", phases=phases)


def changed(folder: Path, **changes: Any) -> tuple[list[str], list[str]]:
    """Build with a changed recipe; return what was made of documents and rows, and of tokens.

    The result is that of a fresh build elsewhere, and what was before still verifies. Rows that
    were packed to files, to be drawn as they are, may stay where a fresh build has spans alone.
    """
    out, fresh = folder / "build", folder / "fresh"
    before, old = times(out), corpora.contents(out)
    made = again(folder, **changes)
    after = times(out)
    assert all(after.get(path, time) == time for path, time in before.items() if "/store/" in path)
    assert made == build(recipes.load(folder / "recipe.yaml"), folder, fresh)
    now, expected = corpora.viewed(out), corpora.viewed(fresh)
    assert expected.items() <= now.items()
    assert all("/epoch-0/data-" in name for name in now.keys() - expected.keys())
    assert verify(out) == verify(fresh) == []
    [state] = (out / "history").iterdir()
    assert verify(state) == []
    for path in state.glob("phases/*/manifest.json"):
        assert old[path.relative_to(state).as_posix()] == path.read_bytes()
    new = [
        Path(path).relative_to(out / "store") for path in {*after} - {*before} if "/store/" in path
    ]
    folders = sorted(name_of(out, path.parent.name) for path in new if path.name == receipts.NAME)
    return folders, sorted(path.suffix for path in new if path.parts[0] in ("blocks", "tokens"))


def name_of(out: Path, key: str) -> str:
    """Return the folder of the view that names an artifact."""
    links = [*out.glob("sources/*"), *out.glob("domains/*/*")]
    return next(path.relative_to(out).as_posix() for path in links if path.resolve().name == key)


def test_what_is_fresh_is_not_written_again(folder: Path) -> None:
    before = times(folder / "build")
    again(folder)
    again(folder, "mixed")
    assert times(folder / "build") == before


def test_a_raw_file_that_was_only_touched_is_fresh(folder: Path) -> None:
    before = times(folder / "build")
    os.utime(folder / PYTHON, ns=(1, 1))
    again(folder)
    assert times(folder / "build") == before


def rewritten(path: Path, change: Any) -> None:
    """Change the rows of a parquet file."""
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_of_a_changed_raw_file_that_file_is_read_and_its_domains_are_made(folder: Path) -> None:
    rewritten(folder / PYTHON, lambda rows: rows[0].update(content="x = 1\n"))
    folders, files = changed(folder)
    assert folders == sorted([*CODE, *PYTHONS, "sources/code", "sources/python"])
    assert files.count(".ids") == 3  # of one file: two epochs of FIM, and without
    assert files.count(".json") == 3 + 2  # and its documents, for two sources


def test_of_a_new_raw_file_that_file_alone_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pq.read_table(folder / PYTHON).slice(0, 5)
    new = (folder / PYTHON).with_name("train-00009-of-00002.parquet")
    pq.write_table(rows, new)
    read: list[str] = []
    path_of = rawfiles.path_of
    for module in (rawfiles, sources):
        monkeypatch.setattr(
            module, "path_of", lambda root, name: (read.append(name), path_of(root, name))[1]
        )
    again(folder)
    assert {Path(name).name for name in read if name.endswith(".parquet")} >= {new.name}
    monkeypatch.undo()
    out = folder / "build"
    fresh = build(recipes.load(folder / "recipe.yaml"), folder, folder / "fresh")
    assert again(folder) == fresh
    assert corpora.viewed(out) == corpora.viewed(folder / "fresh")


def test_a_raw_file_that_changed_and_kept_its_size_is_noticed(folder: Path) -> None:
    data = bytearray((folder / PYTHON).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / PYTHON).write_bytes(data)
    folders, _ = changed(folder)
    assert "sources/code" in folders


CODE = ["domains/code/epoch-0", "domains/code/epoch-1", "domains/code/shuffled"]
PYTHONS = ["domains/python/epoch-0", "domains/python/epoch-0-fim", "domains/python/shuffled"]
WEB = ["domains/web/epoch-0", "domains/web/shuffled"]
WIKI = ["domains/wiki/epoch-0", "domains/wiki/shuffled"]
BOOK = ["domains/book/epoch-0"]
LIKE = "meta.redpajama_set_name LIKE '%C4'"
CHANGES: list[tuple[dict[str, Any], list[str], int]] = [
    ({"domains": {"code": {"fim": {"rate": 0.5}}}}, CODE, 8),
    ({"domains": {"python": {"fim": {"rate": 0.6}}}}, PYTHONS[1:], 0),
    ({"sources": {"web": {"where": LIKE}}}, ["sources/web"], 0),
    ({"sources": {"web": {"where": f"{LIKE} AND length(text) > 200"}}}, ["sources/web", *WEB], 3),
    ({"sources": {"web": {"ftfy": True}}}, WEB[:1], 3),  # rows are the same
    ({"domains": {"web": {"sources": ["web", "wiki"]}}}, WEB, 0),
    ({"rows": {"msl": 32}}, [*BOOK, *CODE, *PYTHONS, *WEB, *WIKI], 0),
    ({"domains": {"book": {"shuffle": True}}}, ["domains/book/shuffled"], 0),
]


@pytest.mark.parametrize(("changes", "folders", "ids"), CHANGES)
def test_what_a_changed_setting_touches_is_made_and_nothing_else(
    folder: Path, changes: dict[str, Any], folders: list[str], ids: int
) -> None:
    made, files = changed(folder, **changes)
    assert made == sorted(folders)
    assert files.count(".ids") == ids


def test_what_was_made_once_is_there_when_a_setting_goes_back(folder: Path) -> None:
    whole = corpora.viewed(folder / "build")
    again(folder, domains={"code": {"fim": {"rate": 0.5}}})
    before = times(folder / "build" / "store")
    again(folder)
    assert times(folder / "build" / "store") == before
    assert corpora.viewed(folder / "build") == whole
    assert len(list((folder / "build" / "history").iterdir())) == 2


def test_of_another_tokenizer_the_documents_stay(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")  # as JSON the same, but not the same file
    made, files = changed(folder)
    packed = [*BOOK, *CODE[:2], *PYTHONS[:2], *WEB[:1], *WIKI[:1]]
    assert made == packed  # and their rows come out the same
    assert {".ids", ".json", ".parquet"} == {*files}
    assert files.count(".ids") == files.count(".json")  # no block of documents


SEALED: list[dict[str, Any]] = [
    {"steps": 13},
    {"batch": 2},
    {"parts": corpora.RECIPE["phases"]["prose"]["parts"][::-1]},
    {"parts": corpora.RECIPE["phases"]["mixed"]["parts"]},
]


@pytest.mark.parametrize("change", SEALED)
def test_a_changed_phase_writes_no_row(folder: Path, change: dict[str, Any]) -> None:
    assert changed(folder, phases={"prose": change}) == ([], [])


def test_a_phase_put_before_others_seals_all_of_them_anew(folder: Path) -> None:
    old = recipes.load(folder / "recipe.yaml")
    first = replace(old.phases["prose"], name="first", steps=2)
    recipe = replace(old, phases={"first": first, **old.phases})
    before = {m.digest for m in manifest.read_manifests(folder / "build")}
    made = build(recipe, folder, folder / "build")
    assert [m.phase for m in made] == ["first", "prose", "mixed", "code"]
    assert before.isdisjoint(m.digest for m in made)
    [state] = (folder / "build" / "history").iterdir()
    assert before == {m.digest for m in manifest.read_manifests(state)}
    assert verify(folder / "build") == verify(state) == []


def test_a_phase_that_the_recipe_lost_is_in_the_history_alone(folder: Path) -> None:
    again(folder, phases={"code": None})
    assert not (folder / "build" / "phases" / "code").exists()
    assert not (folder / "build" / "domains" / "python").exists()
    [state] = (folder / "build" / "history").iterdir()
    assert verify(folder / "build") == verify(state) == []


def test_of_phases_built_alone_those_stay_that_nothing_touches(folder: Path) -> None:
    again(folder, "mixed", phases={"mixed": {"steps": 15}})
    phases = sorted(path.name for path in (folder / "build" / "phases").glob("*/"))
    assert phases == ["mixed", "prose"]  # code followed the former one
    assert verify(folder / "build") == []
    again(folder, phases={"mixed": {"steps": 15}})
    assert verify(folder / "build") == []


def test_a_build_can_be_moved_with_its_history(folder: Path, tmp_path: Path) -> None:
    again(folder, domains={"code": {"fim": {"rate": 0.5}}})
    (folder / "build").rename(tmp_path / "moved")
    [state] = (tmp_path / "moved" / "history").iterdir()
    assert verify(tmp_path / "moved") == verify(state) == []


def plain(made: Path, out: Path) -> None:
    """Copy a build as builds were before there was a store: folders in place of links."""
    shutil.copytree(made, out, ignore=shutil.ignore_patterns("store"))


def test_a_build_from_before_there_was_a_store_stays_and_may_be_changed(folder: Path) -> None:
    out = folder / "old"
    plain(folder / "build", out)
    whole, before = corpora.viewed(out), times(out)
    recipe = recipes.load(folder / "recipe.yaml")
    build(recipe, folder, out)
    assert {path: time for path, time in times(out).items() if path in before} == before
    assert verify(out) == []
    build(recipes.load(corpora.write_recipe(folder, domains={"code": {"epochs": 1}})), folder, out)
    [state] = (out / "history").iterdir()
    assert corpora.viewed(state) == whole
    assert verify(state) == verify(out) == []


def shards(out: Path) -> dict[str, int]:
    return {path: time for path, time in times(out).items() if path.endswith(".h5")}


def test_a_phase_that_is_added_draws_from_the_shards_there_are(folder: Path) -> None:
    before = times(folder / "build")
    old = corpora.RECIPE["phases"]["prose"]
    made = again(folder, phases={"last": {**old, "steps": 3}})
    after = times(folder / "build")
    phases = str(folder / "build/phases/sealed.json")  # names the new phase too
    assert before.pop(phases) < after[phases]
    assert {path: time for path, time in after.items() if path in before} == before
    table = folder / f"build/lookup/shards/{made[-1].digest[:32]}.json"
    new = {str(folder / "build/phases/last/manifest.json"), str(table), phases}
    assert set(after) - set(before) == new
    assert made[-1].previous == made[-2].digest
    assert verify(folder / "build") == []


def test_phases_built_in_any_order_are_those_built_at_once(folder: Path) -> None:
    whole = corpora.contents(folder / "build")
    shutil.rmtree(folder / "build")
    for phase in reversed(corpora.RECIPE["phases"]):
        again(folder, phase)
    again(folder)
    assert corpora.contents(folder / "build") == whole


def test_the_steps_of_a_phase_not_sealed_yet_may_change(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    again(tmp_path, "prose")
    refused = {"mixed": {"steps": 100_000}}
    with pytest.raises(Exception, match="phases.mixed.parts.0: part wiki-odd would be repeated"):
        again(tmp_path, phases=refused)
    before = shards(tmp_path / "build")
    prose, mixed, code = again(tmp_path, phases={"mixed": {"steps": 17}})
    assert shards(tmp_path / "build") == before
    assert (mixed.steps, mixed.previous, code.previous) == (17, prose.digest, mixed.digest)
    assert verify(tmp_path / "build") == []


def test_phases_built_one_by_one_are_those_built_at_once(folder: Path) -> None:
    whole = corpora.contents(folder / "build")
    shutil.rmtree(folder / "build")
    for phase in corpora.RECIPE["phases"]:
        again(folder, phase)
    assert corpora.contents(folder / "build") == whole


def test_a_folder_that_was_removed_is_made_again(folder: Path) -> None:
    whole = corpora.contents(folder / "build")
    for name in ("sources/web", "domains/code/epoch-1", "domains/wiki/shuffled", "phases/mixed"):
        corpora.remove(folder / "build" / name)
        assert verify(folder / "build")
        again(folder)
        assert corpora.contents(folder / "build") == whole
        assert verify(folder / "build") == []


def test_blocks_and_tokens_that_were_removed_are_made_again_when_needed(folder: Path) -> None:
    whole = corpora.viewed(folder / "build")
    for name in ("blocks", "tokens"):
        shutil.rmtree(folder / "build" / "store" / name)
    again(folder)
    assert verify(folder / "build") == []
    for name in ("sources/web", "domains/code/epoch-1"):
        corpora.remove(folder / "build" / name)
    again(folder)
    assert corpora.viewed(folder / "build") == whole
    assert verify(folder / "build") == []


def test_a_sealed_file_that_is_gone_or_cut_short_is_told(folder: Path) -> None:
    path = folder / "build" / "domains" / "book" / "epoch-0" / "data-00001.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=r"data-00001.h5: has \d+ bytes, its receipt says \d+"):
        again(folder)
    path.unlink()
    with pytest.raises(DamageError, match=r"data-00001.h5: is missing, though the receipt lists"):
        again(folder)


def test_rows_that_changed_since_they_were_packed_are_not_shuffled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "build")
    with monkeypatch.context() as patch:
        patch.setattr(pack, "is_laid_out", lambda *_: False)  # as builds were made before
        again(folder)
    path = folder / "build" / "domains" / "python" / "epoch-0-fim" / "data-00000.h5"
    size, rows = path.stat().st_size, read_rows(path)
    rows[:] = 5
    write_rows(path, len(rows), [rows])
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # of the size that the receipt knows
    corpora.remove(folder / "build" / "domains" / "python" / "shuffled")
    told = r"python/shuffled: shuffled rows are not the rows that went in .*: build again"
    with pytest.raises(DamageError, match=told):
        again(folder)
    assert not (folder / "build" / "domains" / "python" / "shuffled" / "receipt.json").exists()


def test_another_order_is_made_from_tokens_alone_and_these_are_made_anew_if_freed(
    folder: Path,
) -> None:
    written = sorted(path.parent.name for path in folder.glob("build/domains/*/*/data-00000.h5"))
    assert written == ["epoch-0", *["shuffled"] * 4]  # book is not shuffled
    whole = corpora.viewed(folder / "build")
    assert changed(folder, domains={"code": {"shuffle": False}}) == (["domains/code/joined"], [])
    collect(folder / "build", tokens=True, superseded=True, delete=True)
    again(folder)
    assert corpora.viewed(folder / "build") == whole
    files = [path.suffix for path in (folder / "build" / "store" / "tokens").rglob("*.*")]
    assert files.count(".ids") == 8  # of code, two epochs of four files


def test_a_build_whose_rows_were_packed_to_files_is_taken_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "build")
    with monkeypatch.context() as patch:
        patch.setattr(pack, "is_laid_out", lambda *_: False)
        older = again(folder)
    before = times(folder / "build")
    assert again(folder) == older
    assert times(folder / "build") == before
    assert verify(folder / "build") == []
    made = again(folder, domains={"code": {"epochs": 3}})
    assert made == build(recipes.load(folder / "recipe.yaml"), folder, folder / "fresh")
    assert verify(folder / "build") == []


def test_a_build_stays_as_it_is_though_another_packs_its_rows_to_files(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    plain, store = {"phases": {"prose": None, "mixed": None}}, tmp_path / "store"
    drawn = recipes.load(corpora.write_recipe(tmp_path, **plain))  # book as it is packed
    shuffled = {"domains": {"book": {"shuffle": True}}}
    recipe = recipes.load(corpora.write_recipe(tmp_path, **plain, **shuffled))
    made = build(recipe, tmp_path, tmp_path / "out", store=store)
    whole = corpora.viewed(tmp_path / "out")
    build(drawn, tmp_path, tmp_path / "other", store=store)
    assert build(recipe, tmp_path, tmp_path / "out", store=store) == made
    assert corpora.viewed(tmp_path / "out") == whole
    assert not (tmp_path / "out" / "history").exists()
    assert build(recipe, tmp_path, tmp_path / "later", store=store) == made  # takes the files
    more = corpora.viewed(tmp_path / "later").keys() - whole.keys()
    assert more == {
        path
        for path in corpora.viewed(tmp_path / "other")
        if path.startswith("domains/book/epoch-0/") and path.endswith(".h5")
    }


def test_epochs_are_laid_out_alike_though_another_build_packs_them_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corpora.viewed(folder / "build")
    asked: list[Path] = []

    def is_sealed(*args: Any) -> bool:
        if args[2].parent.name != "code":
            return False
        asked.append(args[2])
        return len(asked) > 1  # files of all epochs come when the first was asked for

    shutil.rmtree(folder / "build")
    monkeypatch.setattr(pack.view, "is_sealed", is_sealed)
    again(folder, "code")
    assert [place.name for place in asked] == ["epoch-0"]
    now = corpora.viewed(folder / "build")
    assert {path: data for path, data in whole.items() if "domains/code" in path} == {
        path: data for path, data in now.items() if "domains/code" in path
    }


def test_an_edited_manifest_is_told_before_anything_is_sealed(folder: Path) -> None:
    path = folder / "build" / "phases" / "prose" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 9'))
    with pytest.raises(DamageError, match="was edited .*; restore it, or remove it and build"):
        again(folder)


@pytest.mark.parametrize("put_back", [False, True])
def test_a_raw_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_back: bool
) -> None:
    """Put back as it was, bytes and time, it gives what it holds, not what was read meanwhile."""
    corpora.write_corpus(tmp_path)
    digest, changed = rawfiles.digest, tmp_path / PYTHON
    before, time = changed.read_bytes(), changed.stat().st_mtime_ns

    def digest_then_change(root: Path, name: str) -> str:
        found = digest(root, name)
        if root / name == changed and changed.read_bytes() == before:
            rewritten(changed, lambda rows: rows.pop())
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rawfiles, "digest", digest_then_change)
        with pytest.raises(InputError, match=f"{changed}: changed while it was read; build again"):
            again(tmp_path)
    if put_back:
        changed.write_bytes(before)
        os.utime(changed, ns=(time, time))
    again(tmp_path)
    assert verify(tmp_path / "build") == []
    other = tmp_path / "other"
    build(recipes.load(tmp_path / "recipe.yaml"), tmp_path, other)
    assert corpora.viewed(other) == corpora.viewed(tmp_path / "build")


def test_a_raw_file_of_the_same_size_and_time_is_read_again(folder: Path) -> None:
    """Also by who remembers it from before the time of change was looked at."""
    path = folder / PYTHON
    for entry in (folder / "build/store/files").glob("??/*.json"):
        content = orjson.loads(entry.read_bytes())
        older = {key: content[key] for key in content.keys() - {"changed", "digest"}}
        assert len(older) == len(content) - 2
        store.write_mark(entry, older)
    before = corpora.contents(folder / "build")
    again(folder)
    assert corpora.contents(folder / "build") == before
    status, content = path.stat(), bytearray(path.read_bytes())
    place = content.index(b"src/python/0.txt")
    content[place : place + 3] = b"lib"
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    again(folder)
    fresh = folder / "fresh"
    build(recipes.load(folder / "recipe.yaml"), folder, fresh)
    assert corpora.viewed(fresh).items() <= corpora.viewed(folder / "build").items()
