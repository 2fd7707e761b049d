"""Builds whose documents are fitted into rows: the same for any workers, counted, provable."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.manifest.build_folder import shards_of
from crystalmix.mixtures.plan import plan
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify import account_report
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.types import Json
from helpers import corpora

FITTED = {"msl": 64, "rows_per_shard": 8, "pack": "best_fit", "group_tokens": 700}


NO_ROW_FIM = {"python": {"fim": None}}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitted")
    corpora.write_recipe(root, rows={**FITTED, "documents": "masked"}, domains=NO_ROW_FIM)
    return corpora.built(root)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_any_number_of_workers_gives_the_same_rows(fitted: Path, workers: int) -> None:
    """Packing invariant 3."""
    root, out = fitted.parent, fitted.parent / f"by-{workers}"
    build(recipes.load(root / "recipe.yaml"), root, out, workers=workers)
    assert corpora.contents(out) == corpora.contents(fitted)


def test_the_order_in_which_a_disk_lists_files_changes_nothing(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing invariant 3."""
    listed = os.scandir

    class Reversed(list["os.DirEntry[str]"]):
        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda *path: Reversed([*listed(*path)][::-1]))
    root, out = fitted.parent, fitted.parent / "listed"
    build(recipes.load(root / "recipe.yaml"), root, out, workers=1)
    monkeypatch.undo()
    assert corpora.contents(out) == corpora.contents(fitted)


def test_a_sound_build_verifies(fitted: Path) -> None:
    """Packing invariant 9."""
    assert verify(fitted) == []


def account(out: Path, domain: str) -> Json:
    return receipts.read(out / "domains" / domain / "epoch-0").account


def test_padding_and_cuts_are_counted_and_shown_beside_a_stream(fitted: Path) -> None:
    """Packing invariant 9."""
    every = list(corpora.RECIPE["domains"])
    for name in every:
        counts = account(fitted, name)
        tokens, rows = counts["tokens_out"], counts["rows"]
        assert tokens + counts["padding"] == rows * 64
        assert counts["tokens_in"] == tokens
        assert 0 < counts["fitted"]["cut"] <= counts["fitted"]["stream_cut"]
    told = "\n".join(account_report.fitted_lines(fitted))
    assert all(f"domains/{name}/epoch-0" in told for name in every)
    assert "as a stream" in told
    root = fitted.parent
    planned = plan.plan(recipes.load(root / "recipe.yaml"), fitted)
    assert any("best_fit pads" in note for phase in planned for note in phase.notes)


def test_the_manifest_says_how_documents_share_rows(fitted: Path) -> None:
    sealed = manifests.read(fitted / "phases/mixed")
    assert sealed.masked == (True, True)
    assert sealed.parts[0].sharing == {
        "pack": "best_fit",
        "documents": "masked",
        "loss_across": False,
        "group_tokens": 700,
        "too_long": "split",
    }
    assert "rows: best_fit, documents masked, loss not over ends" in "\n".join(
        report.manifest_lines(sealed)
    )


def test_a_manifest_that_says_otherwise_than_its_receipts_is_named(
    fitted: Path, tmp_path: Path
) -> None:
    shutil.copytree(fitted, tmp_path / "build")
    place = tmp_path / "build/phases/mixed/manifest.json"
    sealed = manifests.read(place)
    parts = tuple(replace(part, sharing=None) for part in sealed.parts)
    manifests.write(place, manifests.sealed(replace(sealed, parts=parts)))
    assert any("says sharing" in line for line in verify(tmp_path / "build"))


@pytest.mark.parametrize(
    ("way", "done"), [("drop", "left out"), ("truncate", "shortened to a row"), ("split", None)]
)
def test_what_is_lost_of_long_documents_is_told(
    way: str, done: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpora.write_corpus(tmp_path)
    rows = {"wiki": {"rows": {**FITTED, "too_long": way}}}
    parts = [{"domain": "wiki", "epochs": 1}]
    phases = {"prose": {"steps": None, "parts": parts}, "mixed": None, "code": None}
    corpora.write_recipe(tmp_path, domains=rows, phases=phases)
    with caplog.at_level(logging.WARNING, "crystalmix"):
        out = corpora.built(tmp_path)
    counts = account(out, "wiki")
    lost = counts["tokens_in"] - counts["tokens_out"]
    told = [line for line in caplog.messages if line.startswith("domain wiki: ")]
    expected = (
        f"domain wiki: {counts['fitted']['cut']:,} of {counts['documents']:,} documents are longer "
        f"than a row and {done} (too_long: {way}): {lost:,} of {counts['tokens_in']:,} tokens"
    )
    assert told == ([expected] if done else [])
    assert (lost > 100) == bool(done)


def test_masks_alone_change_no_row(tmp_path: Path) -> None:
    plain, masked = tmp_path / "plain", tmp_path / "masked"
    for root, rows in ((plain, {}), (masked, {"documents": "masked"})):
        root.mkdir()
        corpora.write_corpus(root)
        corpora.write_recipe(root, rows=rows, domains=NO_ROW_FIM)
        corpora.built(root)
    names = [p.relative_to(plain) for p in plain.glob("build/domains/*/*/data-*.h5")]
    assert names
    assert all((plain / name).read_bytes() == (masked / name).read_bytes() for name in names)
    old, new = (manifests.read(root / "build/phases/mixed") for root in (plain, masked))
    assert (old.masked, new.masked) == ((False, False), (True, True))
    assert "sharing" not in old.content()["parts"][0]


def test_no_loss_across_in_a_stream_counts_each_id_but_a_documents_first(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(
        tmp_path,
        rows={"loss_across": False},
        domains={**NO_ROW_FIM, "code": {"fim": None, "epochs": 1}},
    )
    out = corpora.built(tmp_path)
    assert verify(out) == []
    for name in corpora.RECIPE["domains"]:
        place = out / "domains" / name / "epoch-0"
        labels = sum(shard.loss_tokens or 0 for shard in shards_of(receipts.read(place)))
        counts = account(out, name)
        assert labels == counts["tokens_in"] - counts["documents"]


def test_row_level_fim_is_refused_beside_fitted_rows(tmp_path: Path) -> None:
    corpora.write_recipe(tmp_path, rows=FITTED)
    with pytest.raises(RecipeError, match=r"domains.python.fim.level: row moves ids"):
        recipes.load(tmp_path / "recipe.yaml")


def test_the_command_shows_padding_beside_a_stream(fitted: Path) -> None:
    root = fitted.parent
    told = corpora.crystalmix("build", root / "recipe.yaml", "--data", root, "--out", fitted)
    assert told.exit_code == 0
    assert "as a stream" in told.stdout
