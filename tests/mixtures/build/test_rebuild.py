"""Building again: what is fresh is skipped, what was built otherwise is refused and left alone."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.build_folder import MANIFEST
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.readers import files as rawfiles
from crystalmix.prep.rows.shards import read as read_rows
from crystalmix.prep.rows.shards import write as write_rows
from crystalmix.prep.runtime.errors import DamageError, InputError, StaleError
from helpers import corpora

PYTHON = "starcoderdata/python/train-00000-of-00002.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpora.built(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of a corpus, its recipe and its build."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def times(out: Path) -> dict[str, int]:
    """Return when each file of a build was written."""
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def again(folder: Path, *phases: str, **changes: Any) -> list[Manifest]:
    """Build with a changed recipe."""
    path = corpora.write_recipe(folder, **changes)
    return build(recipes.load(path), folder, folder / "build", phases=phases)


def stale(folder: Path, **changes: Any) -> str:
    """Build with a changed recipe; return the refusal. No file may be touched."""
    before = times(folder / "build")
    with pytest.raises(StaleError) as caught:
        again(folder, **changes)
    assert times(folder / "build") == before
    assert verify(folder / "build") == []
    return str(caught.value).replace(f"{folder}/", "")


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


def test_a_changed_raw_file_is_refused(folder: Path) -> None:
    rewritten(folder / PYTHON, lambda rows: rows[0].update(content="x = 1\n"))
    told = stale(folder)
    assert told.startswith(f"build/sources/code: was built otherwise (inputs.files: {PYTHON}: ")
    assert told.endswith("build into another --out or remove this folder")


def test_a_raw_file_that_changed_and_kept_its_size_is_refused(folder: Path) -> None:
    data = bytearray((folder / PYTHON).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / PYTHON).write_bytes(data)
    assert "build/sources/code: was built otherwise (inputs.files: " in stale(folder)


BUILT = "was built otherwise"
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"rows": {"msl": 32}}, f"build/domains/wiki/epoch-0: {BUILT} (settings.rows.msl: 64, now 32)"),
    ({"seed": 8}, f"build/domains/code/epoch-0: {BUILT} (seed: 7, now 8)"),
    (
        {"domains": {"code": {"fim": {"rate": 0.5}}}},
        f"build/domains/code/epoch-0: {BUILT} (settings.fim.rate: 0.9, now 0.5)",
    ),
    (
        {"domains": {"python": {"fim": {"rate": 0.6}}}},
        f"build/domains/python/epoch-0-fim: {BUILT} (settings.fim.rate: 0.5, now 0.6)",
    ),
    (
        {"sources": {"web": {"where": "meta.redpajama_set_name LIKE '%C4'"}}},
        f"build/sources/web: {BUILT} (settings.where: \"meta.redpajama_set_name = 'RedPajamaC4'\", "
        "now \"meta.redpajama_set_name LIKE '%C4'\")",
    ),
    (
        {"sources": {"web": {"ftfy": True}}},
        f"build/domains/web/epoch-0: {BUILT} (settings.ftfy: [false], now [true])",
    ),
    (
        {"domains": {"web": {"sources": ["web", "wiki"]}}},
        f"build/domains/web/epoch-0: {BUILT} (settings.ftfy: [false], now [false,false]; "
        'settings.metadata: [[]], now [[],[]]; settings.sources: ["web"], now ["web","wiki"]); ',
    ),
]


@pytest.mark.parametrize(("changes", "told"), CHANGES, ids=[told[:40] for _, told in CHANGES])
def test_a_changed_setting_is_refused_and_shown(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    assert stale(folder, **changes).startswith(told)


def test_the_order_of_a_domains_sources_is_a_setting(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    domains = {"web": {"sources": ["web", "wiki"]}}
    again(tmp_path, "prose", domains=domains)
    with pytest.raises(StaleError, match=r'settings.sources: ..web","wiki".*'):
        again(tmp_path, "prose", domains={"web": {"sources": ["wiki", "web"]}})


def test_another_tokenizer_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")  # as JSON the same, but not the same file
    told = stale(folder)
    assert "build/domains/wiki/epoch-0: was built otherwise (settings.tokenizer.finger" in told


SEALED = [
    ({"steps": 13}, "steps: 12, now 13; parts.book.got: "),
    ({"batch": 2}, "batch: 4, now 2; "),
    ({"parts": corpora.RECIPE["phases"]["prose"]["parts"][::-1]}, "parts: listed as: ["),
    ({"parts": corpora.RECIPE["phases"]["mixed"]["parts"]}, "parts.book: is gone; "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "told"), SEALED, ids=[told[:20] for _, told in SEALED])
def test_a_changed_sealed_phase_is_refused_with_the_remedy(
    folder: Path, change: dict[str, Any], told: str
) -> None:
    line = stale(folder, phases={"prose": change})
    assert line.startswith(f"build/phases/prose/manifest.json: was sealed otherwise ({told}")
    assert line.endswith("); move it away or build into another --out")


def test_a_phase_put_before_a_sealed_one_is_refused_and_nothing_is_sealed(folder: Path) -> None:
    old = recipes.load(folder / "recipe.yaml")
    first = replace(old.phases["prose"], name="first", steps=2)
    recipe = replace(old, phases={"first": first, **old.phases})
    before = times(folder / "build")
    with pytest.raises(StaleError, match="prose/manifest.json: was sealed otherwise .previous: n"):
        build(recipe, folder, folder / "build")
    assert times(folder / "build") == before
    assert verify(folder / "build") == []


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
    assert set(after) - set(before) == {str(folder / "build/phases/last/manifest.json"), phases}
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
        shutil.rmtree(folder / "build" / name)
        assert verify(folder / "build")
        again(folder)
        assert corpora.contents(folder / "build") == whole
        assert verify(folder / "build") == []


def test_a_sealed_file_that_is_gone_or_cut_short_is_told(folder: Path) -> None:
    path = folder / "build" / "domains" / "code" / "epoch-0" / "data-00001.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=r"data-00001.h5: has \d+ bytes, its receipt says \d+"):
        again(folder)
    path.unlink()
    with pytest.raises(DamageError, match=r"data-00001.h5: is missing, though the receipt lists"):
        again(folder)


def test_rows_that_changed_since_they_were_packed_are_not_shuffled(folder: Path) -> None:
    path = folder / "build" / "domains" / "wiki" / "epoch-0" / "data-00000.h5"
    size, rows = path.stat().st_size, read_rows(path)
    rows[:] = 5
    write_rows(path, len(rows), [rows])
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # of the size that the receipt knows
    shutil.rmtree(folder / "build" / "domains" / "wiki" / "shuffled")
    told = r"wiki/shuffled: shuffled rows are not the rows that went in .*: build again"
    with pytest.raises(DamageError, match=told):
        again(folder)
    assert not (folder / "build" / "domains" / "wiki" / "shuffled" / "receipt.json").exists()


def test_an_edited_manifest_is_told_before_anything_is_sealed(folder: Path) -> None:
    path = folder / "build" / "phases" / "prose" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 9'))
    with pytest.raises(DamageError, match="was edited .*; restore it, or remove it and build"):
        again(folder)


def test_a_raw_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.write_corpus(tmp_path)
    digest, changed = rawfiles.digest, tmp_path / PYTHON

    def digest_then_change(root: Path, name: str) -> str:
        found = digest(root, name)
        if root / name == changed:
            rewritten(changed, lambda rows: rows[0].update(content="x = 1\n"))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rawfiles, "digest", digest_then_change)
        with pytest.raises(InputError, match=f"{changed}: changed while it was read; build again"):
            again(tmp_path)
    again(tmp_path)
    assert verify(tmp_path / "build") == []
    other = tmp_path / "other"
    build(recipes.load(tmp_path / "recipe.yaml"), tmp_path, other)
    assert corpora.contents(other) == corpora.contents(tmp_path / "build")
