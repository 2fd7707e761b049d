"""Artifacts used again: a flip or a forgery in one changes no later build."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.account_report import checked
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.filters.exact_duplicates import KEPT
from crystalmix.prep.filters.sorted_lists import KeyRange
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.store import store
from crystalmix.prep.store.store import Store
from helpers import corpora

ACROSS = {"exact": "recipe"}
# Of each kind of artifact: what the later recipe changes, so that these are used again.
LATER: Mapping[str, dict[str, Any]] = {
    "blocks": {"duplicates": {"exact": "source"}},
    "tokens": {"rows": {"msl": 32}},
    "lists": {"sources": {"book": {"select": {"limit": 25}}}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of duplicates across sources, with its raw files beside it."""
    folder = tmp_path_factory.mktemp("made")
    corpora.write_corpus(folder)
    build(recipe(folder), folder, folder / "build")
    return folder


def recipe(folder: Path, **changes: Any) -> recipes.Recipe:
    place = folder / "-".join(["recipe", *changes])
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_bytes(corpora.tokenizer())
    changes = {"duplicates": ACROSS, "phases": {"code": None}, **changes}
    return recipes.load(corpora.write_recipe(place, **changes))


def rebuilt(made: Path, out: Path, kind: str) -> list[str]:
    """Build the later recipe over a copy of the build; return the manifests' digests."""
    manifests = build(recipe(made, **LATER[kind]), made, out)
    return [manifest.digest for manifest in manifests]


def copy_of(made: Path, place: Path) -> Path:
    return Path(shutil.copytree(made / "build", place, symlinks=True))


def files_of(out: Path, kind: str) -> list[Path]:
    every = sorted((out / "store" / kind).rglob("*"))
    return [path for path in every if path.is_file() and path.suffix != ".json"]


@pytest.mark.parametrize("kind", LATER)
def test_flips_in_artifacts_change_no_later_build(
    kind: str, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = rebuilt(made, copy_of(made, tmp_path / "whole"), kind)
    out, rng = copy_of(made, tmp_path / "out"), Random(1)
    for path in files_of(out, kind):
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert rebuilt(made, out, kind) == whole
    assert "its bytes changed" in caplog.text
    assert "it is made again" in caplog.text
    used = [line for line in verify(out) if f"/store/{kind}/" not in line]
    assert used == []  # what no later folder was made from stays, and is reported


def forged_list(path: Path) -> None:
    """Take away half of the texts that a source kept, and seal the list anew."""
    columns = [
        np.concatenate(slices) for slices in zip(*KEPT.read(path, KeyRange(0, 1)), strict=True)
    ]
    KEPT.write(path, [[column[::2] for column in columns]])
    store.finish(path, {})


def forged_block(path: Path) -> None:
    """Say that a raw file had more records than it had, and seal that anew."""
    result = store.done(path)
    assert result is not None
    result["records"] += 5
    result["dropped"] = {**result["dropped"], "where": result["dropped"].get("where", 0) + 5}
    store.finish(path, result)


def forged_tokens(path: Path) -> None:
    """Say that the ids of a raw file have more controls than they have, and seal that anew."""
    result = store.done(path)
    assert result is not None
    result["controls"] += 3
    store.finish(path, result)


FORGE: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "blocks": (".parquet", forged_block),
    "tokens": (".ids", forged_tokens),
    "lists": (".digests", forged_list),
}


@pytest.mark.parametrize("kind", LATER)
def test_forged_artifacts_change_no_later_build(kind: str, made: Path, tmp_path: Path) -> None:
    whole = copy_of(made, tmp_path / "whole")
    rebuilt(made, whole, kind)
    out, (suffix, forge) = copy_of(made, tmp_path / "out"), FORGE[kind]
    forged = [
        path for path in files_of(out, kind) if path.suffix == suffix and "." not in path.stem
    ]
    for path in forged:
        forge(path)
    lines = verify(out)
    for mark in map(store.mark_of, forged):
        assert any(line.startswith(f"{mark}: is not the one") for line in lines)
    rebuilt(made, out, kind)
    assert corpora.viewed(out) == corpora.viewed(whole)
    assert accounts(out) == accounts(whole)


def accounts(out: Path) -> dict[str, Any]:
    receipts = sorted(out.glob("sources/*/receipt.json")) + sorted(
        out.glob("domains/*/*/receipt.json")
    )
    return {
        path.relative_to(out).as_posix(): orjson.loads(path.read_bytes())["account"]
        for path in receipts
    }


def test_a_digest_that_is_remembered_of_other_bytes_is_refused(made: Path, tmp_path: Path) -> None:
    """A forged one would stand in receipts: the raw file is scanned again, so it is read."""
    out = copy_of(made, tmp_path / "out")
    for path in Store(out / "store").digests():
        content = store.read_mark(path)
        assert content is not None
        store.write_mark(path, {**content, "xxh3": "0" * 32})
    with pytest.raises(
        CrystalmixError, match=r"other bytes than the store remembers.*--drop digests"
    ):
        build(recipe(made, sources={"web": {"select": {"sample": 0.9}}}), made, out)


def test_what_was_made_anew_since_is_sealed_by_who_makes_it(made: Path, tmp_path: Path) -> None:
    """Other libraries write other bytes of the same documents: no fault of the older folders."""
    out = copy_of(made, tmp_path / "out")
    for path in files_of(out, "blocks"):
        path.unlink()
        store.mark_of(path).unlink(missing_ok=True)
    rebuilt(made, out, "blocks")
    for path in files_of(out, "blocks"):
        if path.suffix == ".parquet" and "." not in path.stem:
            assert (
                store.own_digest(store.mark_of(path))
                in Store(out / "store").sealed("blocks")[path.stem]
            )
    assert verify(out) == []
    assert "of these" not in checked(out)
    assert read_manifests(out)


def test_older_stores_are_read_and_said_to_be_held_to_their_own_digests(
    made: Path, tmp_path: Path
) -> None:
    """Uses were lists of keys, without digests."""
    out = copy_of(made, tmp_path / "out")
    places = Store(out / "store")
    for user in places.users():
        uses = {kind: sorted(marks) for kind, marks in places.uses(user).items()}
        store.write_mark(out / "store" / "uses" / f"{user}.json", uses)
    count = len([*places.marks("blocks"), *places.marks("tokens"), *places.marks("lists")])
    assert verify(out) == []
    assert f"held to their own digests alone: {count} of these" in checked(out)
    whole = rebuilt(made, copy_of(made, tmp_path / "whole"), "tokens")
    assert rebuilt(made, out, "tokens") == whole
    assert verify(out) == []
