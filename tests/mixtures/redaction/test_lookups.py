"""Lookups of a build: made at its seal, again where they are gone or stale, and verified."""

from pathlib import Path
from shutil import copytree, rmtree

import numpy as np

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.documents import lookup
from crystalmix.prep.runtime import receipts
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


def test_lookups_without_lines_are_sound_and_documents_are_read_in_their_place(
    tmp_path: Path,
) -> None:
    build = copied(tmp_path / "build")
    before = lookups.opened(build.path).lines("wiki")
    assert isinstance(before, lookup.NumberedLines)
    for inside in (build.lookup / "sources").iterdir():  # as builds were sealed before
        (inside / lookup.LINES).unlink()
        folder = build.source(inside.name)
        receipt = receipts.FileEntry.of(folder / receipts.NAME)
        made_from = {"version": 1, "origin": lookups.origin_digest(receipts.read(folder))}
        names = (lookup.NAMES, lookup.DIGESTS)
        lookups.Stale(folder, inside, made_from, receipt, names).seal()
    assert lookups.make(build) == 0
    assert verify(build.path) == []
    lines = lookups.opened(build.path).lines("wiki")
    assert isinstance(lines, lookup.Lines)
    numbers = np.arange(len(lines))
    old, new = lookup.take([(lines, numbers), (before, numbers)], lookup.line_schema().names)
    assert old.cast(lookup.line_schema()) == new


def test_lines_of_another_source_are_not_read(tmp_path: Path) -> None:
    build = copied(tmp_path / "build")
    rmtree(build.lookup / "sources/wiki")
    copytree(build.lookup / "sources/web", build.lookup / "sources/wiki")
    assert isinstance(lookups.opened(build.path).lines("wiki"), lookup.Lines)


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
