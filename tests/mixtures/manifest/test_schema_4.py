"""Manifests of schema 4: what a trainer needs stands in them; both schemas are read."""

import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import seal
from crystalmix.mixtures.build.build import build, migrate
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.documents.schema import identity
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.train.evaluation.held_out import begins_with_bos, is_held_out
from helpers import corpora

# by the version that gave each raw file a row group
RECORDED = "92021c42f8f4a0f626faa18991a4625a6e04d3c442bb0f1a3db6be469c75f5da"
PHASES = ["prose", "mixed", "code"]
HELD = {
    "domains": {"web": {"held_out": True}},
    "phases": {
        "prose": {"steps": 2, "parts": [{"domain": "web", "weight": 1.0}]},
        "mixed": None,
        "code": None,
    },
}


@lru_cache(maxsize=1)
def made() -> Path:
    return corpora.built(Path(mkdtemp(prefix="crystalmix-schema-")))


@lru_cache(maxsize=1)
def held() -> Path:
    """Return a build of one phase of held-out documents."""
    folder = Path(mkdtemp(prefix="crystalmix-schema-"))
    corpora.write_corpus(folder)
    path = corpora.write_recipe(folder, **HELD)
    build(recipes.load(path), folder, folder / "build")
    return folder / "build"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return Path(shutil.copytree(made(), tmp_path / "build"))


def test_a_build_writes_schema_3_and_it_is_read_as_it_is(out: Path) -> None:
    for manifest in read_manifests(out):
        path = BuildFolder(out).manifest(manifest.phase)
        content = orjson.loads(path.read_bytes())
        assert (content["schema"], manifest.schema) == (3, 3)
        assert "migrated" not in content
        assert all("packed" not in part for part in content["parts"])
        before = path.read_bytes()
        manifests.write(path, manifest)
        assert path.read_bytes() == before


def test_a_migrated_manifest_says_how_each_part_was_packed_and_keeps_order_and_rows(
    out: Path,
) -> None:
    old = read_manifests(out)
    new = migrate(out)
    assert [each.phase for each in new] == PHASES
    assert [each.migrated for each in new] == [each.digest for each in old]
    assert [each.previous for each in new] == [None, *(each.digest for each in new[:-1])]
    for before, after in zip(old, read_manifests(out), strict=True):
        assert after.schema == 4
        for part in after.parts:
            packed = part.packed
            assert packed is not None
            assert (packed.held_out, packed.split, packed.validates) == (False, None, False)
            assert (packed.packing["msl"], packed.packing["bos"], packed.packing["eos"]) == (
                after.msl,
                True,
                True,
            )
            assert len(packed.documents) == 64
        assert replace(part, packed=None) == before.parts[-1]
        last = after.steps * after.batch
        for one, other in zip(
            vars(before.rows(0, last)).values(), vars(after.rows(0, last)).values(), strict=True
        ):
            assert np.array_equal(one, other)
    assert verify(out) == []


def test_migrating_twice_and_building_again_change_nothing(out: Path) -> None:
    migrate(out)
    first = corpora.contents(out)
    migrate(out)
    assert corpora.contents(out) == first
    recipe = recipes.load(made().parent / "recipe.yaml", made().parent / "tokenizer.json")
    build(recipe, made().parent, out)
    assert corpora.contents(out) == first


@pytest.mark.parametrize("phase", PHASES)
def test_a_migration_that_was_killed_goes_on(out: Path, phase: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(out, tmp_path / "other"))
    migrate(other)
    shutil.copy(BuildFolder(other).manifest(phase), BuildFolder(out).manifest(phase))
    migrate(out)
    assert corpora.contents(out) == corpora.contents(other)


def test_builds_can_write_schema_4_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "SCHEMA", 4)
    out = corpora.built(tmp_path)
    assert [(each.schema, each.migrated) for each in read_manifests(out)] == [(4, None)] * 3
    assert verify(out) == []


def test_a_manifest_whose_schema_does_not_fit_its_content_is_damaged(out: Path) -> None:
    path = BuildFolder(out).manifest("prose")
    for schema in (4, 5):
        content = {**orjson.loads(path.read_bytes()), "schema": schema}
        del content["digest"]
        content["digest"] = manifests.receipts.digest(content)
        path.write_bytes(manifests.canonical(content))
        with pytest.raises(DamageError):
            manifests.read(path)


@pytest.mark.parametrize(("key", "value"), [("held_out", True), ("documents", "0" * 64)])
def test_verify_holds_what_a_manifest_says_of_its_parts_against_receipts_and_documents(
    out: Path, key: str, value: object
) -> None:
    *_, last = migrate(out)
    [part, *others] = last.parts
    assert part.packed is not None
    wrong = replace(part, packed=replace(part.packed, **{key: value}))
    manifests.write(
        BuildFolder(out).manifest("code"),
        manifests.sealed(replace(last, parts=(wrong, *others), digest="")),
    )
    assert any(f"part {part.name}: says {key} {value}" in line for line in verify(out))


def test_the_digest_of_documents_covers_names_kept_columns_and_places(tmp_path: Path) -> None:
    path = BuildFolder(made()).documents("code")
    table, copy = pq.read_table(path), tmp_path / "documents.parquet"
    pq.write_table(table, copy, compression="none", row_group_size=len(table))
    whole = seal.documents_digest(copy)
    pq.write_table(table, copy, compression="zstd", row_group_size=len(table))
    assert seal.documents_digest(copy) == whole
    for name in ("name", "max_stars_repo_name", "file", "record"):
        index = table.column_names.index(name)
        turned = table[name].to_pylist()[::-1]
        field = table.schema.field(name)
        changed = table.set_column(index, field, pa.array(turned, field.type))
        pq.write_table(changed, copy, row_group_size=len(table))
        assert seal.documents_digest(copy) != whole


def test_the_digest_of_documents_is_the_same_however_many_raw_files_share_a_row_group(
    tmp_path: Path,
) -> None:
    counts, size = (1, 1, 70_000, 3, 1), 1 << 16
    files = [f"f{number}.jsonl" for number, count in enumerate(counts) for _ in range(count)]
    numbers = np.arange(len(files))
    table = pa.table(
        {
            "document": numbers,
            "file": pa.array(files).dictionary_encode(),
            "record": numbers * 7,
            "name": [f"n{i}" if i % 3 else None for i in range(len(files))],
            "digest": pa.array([i.to_bytes(16, "big") for i in range(len(files))], pa.binary(16)),
            "characters": numbers % 97,
            "bytes": numbers % 89,
        },
        schema=identity(),
    )
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    with pq.ParquetWriter(old, table.schema) as writer:  # a row group for each batch of a file
        for rows in ((0, 1), (1, 2), (2, 2 + size), (2 + size, 70_002), (70_002, 70_005)):
            writer.write_table(table.slice(rows[0], rows[1] - rows[0]))
        writer.write_table(table.slice(70_005))
    with pq.ParquetWriter(new, table.schema) as writer:
        writer.write_table(table.slice(0, 2))
        writer.write_table(table.slice(2, size))
        writer.write_table(table.slice(2 + size))
    assert seal.documents_digest(old) == seal.documents_digest(new) == RECORDED


def test_a_held_out_phase_is_known_by_its_manifest_where_no_receipt_is_there(
    tmp_path: Path,
) -> None:
    out = Path(shutil.copytree(held(), tmp_path / "build"))
    [manifest] = read_manifests(out)
    assert is_held_out(out, manifest)
    shutil.rmtree(BuildFolder(out).packed("web"))
    with pytest.raises(RefusalError, match=r"epoch-0: is missing, and only its receipt says wheth"):
        is_held_out(out, manifest)
    with pytest.raises(RefusalError, match="which say how its rows were packed; restore them"):
        migrate(out)
    whole = Path(shutil.copytree(held(), tmp_path / "whole"))
    [migrated] = migrate(whole)
    shutil.rmtree(BuildFolder(whole).packed("web"))
    assert is_held_out(whole, migrated)
    assert begins_with_bos(whole, migrated)


def test_training_on_a_held_out_phase_is_refused_where_receipts_are_gone(tmp_path: Path) -> None:
    out = Path(shutil.copytree(held(), tmp_path / "build"))
    shutil.rmtree(BuildFolder(out).packed("web"))
    result = corpora.crystalmix("train", out, "--run", "mini", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "only its receipt says whether part web of phase prose is held out" in result.stderr
    assert not (tmp_path / "run").exists()
