"""Lookups of a build: made at its seal, again where they are gone or stale, and verified."""

from pathlib import Path
from shutil import copytree, rmtree

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.verify.verify import verify
from helpers.runs import small_build


def copied(out: Path) -> BuildFolder:
    copytree(small_build(), out)
    return BuildFolder(out)


def test_a_build_has_its_lookups_and_makes_none_twice(tmp_path: Path) -> None:
    build = copied(tmp_path / "build")
    assert lookups.make(build) == 0
    names = {path.name for path in (build.lookup / "sources").iterdir()}
    assert names == {path.name for path in (build.path / "sources").iterdir()}


def test_lookups_that_are_gone_are_made_again_the_same(tmp_path: Path) -> None:
    build = copied(tmp_path / "build")
    before = {p: p.read_bytes() for p in build.lookup.rglob("*") if p.is_file()}
    rmtree(build.lookup)
    assert verify(build.path) == []
    assert lookups.ensured(build.path).made == len(
        list((small_build() / "lookup").rglob(lookups.SEAL))
    )
    assert {p: p.read_bytes() for p in build.lookup.rglob("*") if p.is_file()} == before


def test_a_damaged_lookup_and_a_stale_one_are_faults(tmp_path: Path) -> None:
    build = copied(tmp_path / "build")
    names = build.lookup / "sources/wiki/names.parquet"
    changed = bytearray(names.read_bytes())
    changed[40] ^= 1
    names.write_bytes(changed)
    [line] = verify(build.path)
    assert f"{names}: its bytes changed" in line
    rmtree(build.lookup / "sources/wiki")
    copytree(build.lookup / "sources/web", build.lookup / "sources/wiki")
    [line] = verify(build.path)
    assert "was made from another" in line
    assert lookups.make(build) == 1
    assert verify(build.path) == []
