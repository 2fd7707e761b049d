"""Redaction: rows hold nothing of what was taken, and all else is as it was, bit for bit."""

import re
from functools import lru_cache
from pathlib import Path
from shutil import copytree

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

import crystalmix as cm
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.recipes.recipe import load as load_recipe
from crystalmix.mixtures.redaction.redact import redact
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.mixtures.upkeep import purge as purging
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import spans
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError
from crystalmix.train.loader.batches import Share
from crystalmix.train.record import views
from crystalmix.train.trace import located
from helpers import graded, laid_out
from helpers.audited import audited_build, loaded, marks, segments
from helpers.corpora import built, crystalmix, write_corpus, write_recipe
from helpers.runs import scratch

TAKEN, LETTER = "seen/twice", "ж"


@lru_cache(maxsize=1)
def redacted_build() -> Path:
    """Return a view without one repository; nobody may change it."""
    folder = scratch()
    (folder / "list").write_text(f"{TAKEN}\n", "utf-8")
    redact(audited_build(), folder / "list", folder / "redacted")
    return folder / "redacted"


def every_row(build: Path, manifest: Manifest) -> np.ndarray:
    """Return all rows of a phase in their order: (rows, 3, msl)."""
    refs = manifest.rows(0, manifest.steps * manifest.batch)
    return gather([build / path for path in manifest.paths], refs.shard, refs.row)


def pairs() -> list[tuple[Manifest, Manifest]]:
    return list(zip(read_manifests(audited_build()), read_manifests(redacted_build()), strict=True))


def test_ids_of_what_was_taken_are_padding_and_all_others_stay() -> None:
    cleared = 0
    for old, new in pairs():
        before, after = every_row(audited_build(), old), every_row(redacted_build(), new)
        for was, now in zip(before, after, strict=True):
            place = 0
            for piece in segments(was[0].tolist()):
                here = slice(place, place + len(piece))
                if marks(LETTER) & set(piece):
                    assert (now[0, here] == loaded().pad).all()
                    assert (now[1, here] == 0).all()
                    cleared += len(piece)
                else:
                    assert np.array_equal(now[0, here], was[0, here])
                place += len(piece)
    assert cleared


def test_no_label_predicts_what_was_taken_and_all_others_stay() -> None:
    gone = marks(LETTER)
    for old, new in pairs():
        before, after = every_row(audited_build(), old), every_row(redacted_build(), new)
        assert not np.isin(after[:, 2], list(gone)).any()
        changed = (before[:, 1:] != after[:, 1:]).any(axis=1)  # (rows, msl): mask or label
        for was, now, marked in zip(before, after, changed, strict=True):
            own = np.flatnonzero(was[0] != now[0])
            predicted = {*own.tolist(), *(own - 1).tolist()}
            others = set(np.flatnonzero(marked).tolist()) - predicted
            # the label of a row's last id is the first of the row that was packed after it
            assert others <= {was.shape[1] - 1}
            cleared = {place for place in predicted if place >= 0} | others
            assert all(now[1, place] == 0 for place in cleared)


def test_last_labels_are_cleared_where_the_next_packed_row_begins_with_it() -> None:
    folder = "domains/code/epoch-0"
    before, after = (
        np.concatenate([*laid_out.of_folder(build / folder).values()])
        for build in (audited_build(), redacted_build())
    )
    begins = np.flatnonzero(before[:, 0, 0] != after[:, 0, 0])
    assert len(begins)
    rows = begins[begins > 0] - 1
    assert (after[rows, 1, -1] == 0).all()
    kept = np.setdiff1d(np.flatnonzero((before[:, 0] == after[:, 0]).all(axis=1)), rows)
    assert np.array_equal(before[kept], after[kept])


def test_the_order_and_the_digests_of_shards_stay() -> None:
    names = {manifest.phase: manifest for manifest, _ in pairs()}
    for old, new in pairs():
        assert [part.shards for part in new.parts] == [part.shards for part in old.parts]
        stop = old.steps * old.batch
        assert np.array_equal(old.rows(0, stop).row, new.rows(0, stop).row)
        assert (new.redaction is None) == (old.phase == "prose")
        if new.redaction is not None:
            assert new.redaction["origin"] == names[new.phase].digest
    assert pairs()[0][0].digest == pairs()[0][1].digest  # nothing was taken of it


def test_verify_finds_the_view_sound_and_any_change_of_it(tmp_path: Path) -> None:
    assert verify(redacted_build()) == []
    out = redacted_build().with_name("changed")
    copytree(redacted_build(), out, symlinks=True)
    [stones, *_] = sorted(out.rglob("*.tombstones.parquet"))
    stones.unlink()
    assert any("tombstones" in line or "data-" in line for line in verify(out))
    link = next(path for path in sorted((out / "domains").rglob("*")) if path.is_symlink())
    link.unlink()
    assert any(str(link) in line for line in verify(out))


def test_no_row_is_read_to_redact(tmp_path: Path) -> None:
    build = tmp_path / "build"
    copytree(audited_build(), build)
    for path in build.rglob("*.h5"):
        path.write_bytes(b"no shard")
    (tmp_path / "list").write_text(f"{TAKEN}\n", "utf-8")
    phases = redact(build, tmp_path / "list", tmp_path / "out")
    assert [phase.digest for phase in phases] == [new.digest for _, new in pairs()]


def test_trace_and_the_loader_obey_the_view() -> None:
    traced = views.connect(redacted_build())
    [document] = located.find_documents(traced, f"{TAKEN}/src/a.py")[:1]
    assert located.steps(traced, document.source, document.document) == []
    _, new = pairs()[1]
    gone = list(marks(LETTER))
    for step in range(new.steps):
        batch = Share(new, redacted_build()).read(step)
        assert not np.isin(batch.ids, gone).any()


def test_a_program_that_knows_no_tombstones_finds_no_shard() -> None:
    [stones, *_] = sorted(redacted_build().rglob("*.tombstones.parquet"))
    shard = stones.with_name(stones.name.replace(".tombstones.parquet", ".h5"))
    with pytest.raises(OSError, match="No such file"):
        h5py.File(shard)


def test_a_list_that_names_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("not/there\n", "utf-8")
    with pytest.raises(InputError, match="names no document"):
        redact(audited_build(), tmp_path / "list", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_entries_that_name_nothing_are_told_by_their_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list").write_text(f"# asked\n{TAKEN}\nseen/twcie\n", "utf-8")
    redact(audited_build(), tmp_path / "list", tmp_path / "view")
    purging.plan(audited_build(), tmp_path / "list")
    notes = [record.getMessage() for record in caplog.records]
    assert len([note for note in notes if "1 of 2 entries name nothing" in note]) == 2
    assert all("(line 3 'seen/twcie')" in note for note in notes if "name nothing" in note)


def test_copies_that_stay_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list").write_text("owner2/\ncopy/cat\n", "utf-8")  # dropped for seen/twice
    redact(audited_build(), tmp_path / "list", tmp_path / "view")
    assert "2 other documents of equal text, or near it, stay under other names" in caplog.text
    caplog.clear()
    redact(audited_build(), tmp_path / "list", tmp_path / "all", copies=True)
    assert "stay under other names" not in caplog.text


def test_a_rebuild_has_none_of_the_texts_and_says_what_moves(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{TAKEN}\n", "utf-8")
    recipe = audited_build().parent / "recipe.yaml"
    differences = cm.rebuild_without(
        audited_build(), tmp_path / "list", recipe, tmp_path / "out", data=audited_build().parent
    )
    assert any(line.startswith("mixed: parts.code") for line in differences.lines())
    traced = views.connect(tmp_path / "out")
    assert not list(located.find_documents(traced, "copy/cat/src/a.py"))
    for manifest in read_manifests(tmp_path / "out"):
        rows = every_row(tmp_path / "out", manifest)
        assert not np.isin(rows[:, [0, 2]], list(marks(LETTER))).any()


def test_a_mixture_over_a_view_is_refused_for_one_over_its_build(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path, name="other", duplicates={"exact": "source"}))
    with pytest.raises(RefusalError, match="is redacted, .*; mix over that build, then redact"):
        mix(recipe, redacted_build())


def test_a_view_stays_when_its_origin_is_changed(tmp_path: Path) -> None:
    build = built(tmp_path)
    [name, *_] = cm.open(build).sql("SELECT name FROM documents WHERE source = 'python'")["name"]
    (tmp_path / "list").write_text(f"{name}\n", "utf-8")
    out = tmp_path / "redacted"
    redact(build, tmp_path / "list", out)
    assert list((build / "history").iterdir())  # the view's origin lasts
    assert "history/" not in crystalmix("show", build, "--history").stdout
    before = [every_row(out, manifest) for manifest in read_manifests(out)]
    write_recipe(tmp_path, rows={"rows_per_shard": 16}, domains={"python": {"fim": None}})
    cm.build(tmp_path / "recipe.yaml", build, data=tmp_path)
    assert verify(out) == []
    for rows, manifest in zip(before, read_manifests(out), strict=True):
        assert (every_row(out, manifest) == rows).all()
    assert crystalmix("show", build, "--history").stdout.count("history/") == 3


def test_every_piece_of_every_copy_is_taken_from_fitted_rows(tmp_path: Path) -> None:
    graded.written(tmp_path, rows={"pack": "best_fit", "documents": "masked"})
    build, out = built(tmp_path), tmp_path / "redacted"
    texts = pq.read_table(build / "sources/rated/documents.parquet").to_pylist()
    often = {text for text, times in graded.wanted(graded.records()).items() if times > 2}
    gone = {t["document"] for t in texts if t["digest"] in {_digest(text) for text in often}}
    (tmp_path / "list").write_text("".join(f"digest:{_digest(t).hex()}\n" for t in often))
    redact(build, tmp_path / "list", out)
    assert verify(out) == []
    pieces = 0
    before, after = (laid_out.packed(place / "domains/rated") for place in (build, out))
    for name, rows in before.items():
        expected = rows.copy()
        for span in pq.read_table(spans.path_of(build / "domains/rated" / name)).to_pylist():
            if span["document"] in gone:
                pieces += 1
                here = slice(span["start"], span["stop"])
                expected[span["row"], :, here] = np.array([[loaded().pad], [0], [loaded().pad]])
        assert np.array_equal(after[name], expected)
    assert pieces > 3 * len(gone)


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def test_a_flip_in_any_file_of_a_view_is_found_in_one_line_each() -> None:
    out = redacted_build().with_name("flipped")  # beside it, so that its links lead where they did
    copytree(redacted_build(), out, symlinks=True)
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.is_symlink()]
    kinds = {re.sub(r"-\d+", "", path.name): path for path in files}
    assert {*kinds} >= {"redaction.json", "receipts.json", "data.tombstones.parquet"}
    for path in kinds.values():
        before = path.read_bytes()
        for place in range(3, len(before), len(before) // 5):
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            try:
                lines = verify(out)
            except DamageError as error:
                lines = [str(error)]
            assert lines, (path, place)
            assert not [line for line in lines if "\n" in line]
        path.write_bytes(before)
    assert verify(out) == []
