"""Purges: nothing of the texts is left in any file below a build, and all else is as it was."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from shutil import copy, copytree, rmtree
from typing import Any

import h5py
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crystalmix as cm
from crystalmix.mixtures.build.build import alone
from crystalmix.mixtures.build.build import build as make
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.manifest.purged import Certificate
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.resealing.merge import merge
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.mixtures.upkeep import purge as purging
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.filters import entries as lists
from crystalmix.prep.filters.entries import parse
from crystalmix.prep.runtime.errors import InputError, RecipeError, RefusalError, UsageError
from crystalmix.train.audit import audit as audits
from crystalmix.train.record import run_folder
from helpers import kills
from helpers.audited import WORD, audited_build, audited_run, inflated, marks, recounted
from helpers.corpora import built, crystalmix, write_corpus, write_recipe
from helpers.runs import run_file, scratch

NAMES = ("seen/twice", "owner/")
SPOTS = 6  # at which a purge is killed


def listed(*names: str) -> Path:
    path = scratch() / "list"
    path.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return path


def copied() -> Path:
    out = scratch() / "build"
    copytree(audited_build(), out, symlinks=True)
    return out


def sharing() -> Path:
    """Return a folder with two builds, `one` and `two`, of a store that they share."""
    folder = scratch()
    write_corpus(folder)
    write_recipe(folder)
    recipe = recipes.load(folder / "recipe.yaml")
    for name in ("one", "two"):
        make(recipe, folder, folder / name, store=folder / "store")
    return folder


@lru_cache(maxsize=1)
def purged_build() -> tuple[Path, Certificate]:
    """Return a build that two repositories were purged of, and the certificate."""
    out = copied()
    return out, purging.purge(out, listed(*NAMES), by="A. Lead, 30 November")


def holders(build: Path) -> Iterator[str]:
    """Yield the files below a build that hold an id, a name or a letter of what was purged.

    Shards are read by h5py, parquet by pyarrow, token files as frames, all else as bytes.
    """
    gone = list(marks("ж") | marks("щ"))
    words = ("seen/twice", "owner/two", "Owner/One", WORD["ж"], WORD["щ"])
    for path in sorted(p for p in build.rglob("*") if p.is_file() and not p.is_symlink()):
        raw = path.read_bytes()
        if path.name == "tokenizer.json":  # its vocabulary has the letters, as it should
            continue
        held = any(word.encode() in raw for word in words)
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                rows: Any = file["data"]
                held |= bool(np.isin(rows[:][:, [0, 2]], gone).any())
        elif path.suffix == ".ids":
            held |= bool(np.isin(np.frombuffer(inflated(raw), "<u2"), gone).any())
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            for column in table.columns:
                if pa.types.is_dictionary(column.type):
                    column = column.cast(pa.string())  # noqa: PLW2901
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    values = [value.lower() for value in column.to_pylist() if value]
                    held |= any(word.lower() in value for value in values for word in words)
        if held:
            yield path.relative_to(build).as_posix()


def test_a_scan_finds_the_texts_before_a_purge_and_nothing_after() -> None:
    before = {Path(name).suffix for name in holders(audited_build())}
    assert before >= {".h5", ".ids", ".parquet"}
    build, _ = purged_build()
    assert list(holders(build)) == []


def test_a_purged_build_is_sound_and_other_shards_are_the_same_bytes() -> None:
    build, certificate = purged_build()
    assert verify(build) == []
    done = {one.file for one in certificate.files}
    same = 0
    for path in sorted(audited_build().glob("store/rows/*/*.h5")):
        name = path.relative_to(audited_build()).as_posix()
        assert ((build / name).read_bytes() == path.read_bytes()) == (name not in done)
        same += name not in done
    assert same > len(done) / 2
    assert all(one.before != one.after for one in certificate.files)


def test_sorted_lists_of_a_source_go_with_what_was_purged_of_it() -> None:
    before, after = (
        {path.name for path in out.glob("store/lists/*/*")}
        for out in (audited_build(), purged_build()[0])
    )
    assert after < before


def test_manifests_name_the_purge_and_keep_their_order() -> None:
    build, certificate = purged_build()
    changed = {one.after: one.before for one in certificate.manifests}
    pairs = zip(read_manifests(audited_build()), read_manifests(build), strict=True)
    for old, new in pairs:
        assert [part.shards for part in old.parts] == [part.shards for part in new.parts]
        if old.phase == "prose":
            assert new == old
            continue
        assert changed[new.digest] == old.digest
        assert new.redaction is not None
        assert new.redaction["certificates"] == [certificate.id]
        assert new.redaction["origin"] == old.digest


def test_changed_bytes_and_a_lost_certificate_are_faults(tmp_path: Path) -> None:
    out = tmp_path / "build"
    copytree(purged_build()[0], out, symlinks=True)
    (out / "purge").rename(tmp_path / "log")
    assert any("which is not in" in line for line in verify(out))
    (tmp_path / "log").rename(out / "purge")
    [text] = out.glob("purge/*/request.json")
    certificate = text.with_name("certificate.json")
    certificate.write_bytes(certificate.read_bytes().replace(b"A. Lead", b"B. Lead"))
    assert any("was edited" in line for line in verify(out))
    certificate.unlink()
    assert any("is not finished" in line for line in verify(out))
    assert "is not finished" in str(next(cm.show(out).shown()))


def test_an_audit_still_answers_by_name_and_names_the_certificate() -> None:
    build, certificate = purged_build()
    run = audited_run()
    entries = [parse(name, line, "list") for line, name in enumerate((*NAMES, "owner/two", "no/"))]
    begun = run_folder.build_of(run, build)
    assert begun.parent.name == "history"
    for where in (begun, build):
        answer = audits.audit(None, where, [entry for entry in entries if entry])
        assert [one.purged for one in answer.entries] == [(certificate.id,)] * 3 + [()]
        assert answer.entries[3].verdict == "absent"
    seen = audits.audit(run, begun, [entry for entry in entries if entry]).entries[0]
    for phase in seen.own:
        assert phase.rows == recounted(run, audited_build(), phase.phase, "ж")["rows"]
    assert crystalmix("audit", build, "--list", listed(*NAMES)).stdout.count("purged, cert") == 2


def test_evidence_checks_after_a_purge_and_that_from_before_says_why_not(tmp_path: Path) -> None:
    build, certificate = purged_build()
    entries = listed(*NAMES, "no/such")
    cm.audit(build, entries, evidence=tmp_path / "new")
    assert cm.check_evidence(build, tmp_path / "new").faults == ()
    cm.audit(audited_build(), entries, evidence=tmp_path / "old")
    fault, *_ = cm.check_evidence(build, tmp_path / "old").faults
    assert certificate.id in fault


def test_a_run_from_before_is_verified_as_far_as_rows_are_there_and_goes_on_as_a_fork() -> None:
    build, certificate = purged_build()
    run = scratch() / "run"
    copytree(audited_run(), run)
    verdict = cm.verify(build, run=run)
    assert verdict.faults == ()
    for state in build.glob("history/*"):  # which the run's manifests are of
        assert cm.verify(state).faults == ()
        assert run_folder.build_of(run, build) in (state, build)
    told = [note for note in verdict.notes if certificate.id in note]
    assert "certificate.json: is of its request and has its own digest" in told[0]
    line = told[1]
    steps = recounted(run, audited_build(), "mixed", "ж")["steps"]
    assert int(line.split()[1]) >= int(str(steps)) > 0
    with pytest.raises(RefusalError, match="were purged since"):
        cm.train(build, run_file(), out=run)
    fork = scratch() / "fork"
    cm.fork(run, build, fork)
    cm.train(build, run_file(), out=fork)
    assert cm.verify(build, run=fork).faults == ()
    assert list(build.glob("history/*"))


def test_a_killed_purge_is_no_build_until_it_went_on() -> None:
    whole, names = purged_build()[0], listed(*NAMES)
    expected = {p.name: p.read_bytes() for p in sorted(whole.glob("store/rows/*/*.h5"))}
    killed = unsealed = 0
    for number in np.linspace(8, 190, SPOTS).astype(int).tolist():
        build = copied()
        killed += kills.run(kills.purge_until_operation, str(build), str(names), number) == -9
        if not list(build.glob("purge/*/request.json")):
            continue
        if not list(build.glob("purge/*/certificate.json")):
            unsealed += 1
            assert verify(build) != []
            with pytest.raises(RefusalError, match="not finished"):
                cm.purge(build, names)
            with pytest.raises(RefusalError, match="not finished"):
                cm.redact(build, names, scratch() / "out")
            with pytest.raises(RefusalError, match="not finished"):
                merge([build], scratch() / "out")
            cm.purge(build, resume=True)
        assert verify(build) == []
        assert list(holders(build)) == []
        assert {p.name: p.read_bytes() for p in sorted(build.glob("store/rows/*/*.h5"))} == expected
    assert killed == SPOTS
    assert unsealed >= SPOTS / 2


def test_the_same_recipe_builds_nothing_and_another_never_brings_texts_back() -> None:
    folder = scratch()
    write_corpus(folder)
    write_recipe(folder)
    build = built(folder)
    name = pq.read_table(build / "sources/code/documents.parquet")["name"][0].as_py()
    certificate = purging.purge(build, _list(folder, name))
    before = [manifest.digest for manifest in read_manifests(build)]
    assert [m.digest for m in make(recipes.load(folder / "recipe.yaml"), folder, build)] == before
    write_recipe(folder, rows={"msl": 32})
    with pytest.raises(RecipeError, match="were purged"):
        make(recipes.load(folder / "recipe.yaml"), folder, build)
    texts = (build / "purge" / certificate.id / "texts.txt").read_bytes()
    (folder / "gone.txt").write_bytes(texts)
    out = {"select": {"opt_out": [{"file": "gone.txt", "match": "digest"}]}}
    write_recipe(folder, rows={"msl": 32}, sources={"code": out, "python": out})
    make(recipes.load(folder / "recipe.yaml"), folder, build)
    assert verify(build) == []


def _list(folder: Path, *names: str) -> Path:
    (folder / "list").write_text("".join(f"{name}\n" for name in names), "utf-8")
    return folder / "list"


def test_names_stay_on_request_and_a_second_purge_adds_to_the_first() -> None:
    build = copied()
    first = purging.purge(build, listed("seen/twice"), keep_names=True)
    second = purging.purge(build, listed("owner/"))
    assert verify(build) == []
    names = pq.read_table(build / "sources/code/documents.parquet")["name"].to_pylist()
    assert f"seen/twice/src/a.py/purged:{first.id}" in names
    assert not [name for name in names if str(name).lower().startswith("owner/")]
    [mixed] = [m for m in read_manifests(build) if m.phase == "mixed"]
    assert mixed.redaction is not None
    assert mixed.redaction["certificates"] == sorted([first.id, second.id])
    with pytest.raises(InputError, match="were purged before"):
        purging.purge(build, listed("owner/"))


def test_dropped_records_and_copies_go_where_they_are_asked_for() -> None:
    build = copied()
    certificate = purging.purge(build, listed("seen/twice"), copies=True)
    assert certificate.dropped == 2  # copy/cat of both sources, dropped as a duplicate
    for source in ("code", "python"):
        table = pq.read_table(build / f"sources/{source}/dropped.parquet").to_pylist()
        assert not [row for row in table if row["name"] and row["name"].startswith("copy/")]
    assert verify(build) == []


def test_shared_stores_views_and_lists_of_nothing_are_refused(tmp_path: Path) -> None:
    folder = sharing()
    with pytest.raises(RefusalError, match=str(folder / "two")):
        purging.plan(folder / "one", listed("a/"))
    with pytest.raises(InputError, match="names no document"):
        purging.plan(audited_build(), listed("no/such"))
    cm.redact(audited_build(), listed("seen/twice"), tmp_path / "view")
    with pytest.raises(UsageError, match="is a view"):
        purging.plan(tmp_path / "view", listed("seen/twice"))


def test_a_store_is_purged_when_the_other_builds_of_it_are_gone() -> None:
    folder = sharing()
    with (folder / "two/sources/wiki/documents.parquet").open("rb") as file:
        entry = pq.read_table(file).slice(0, 1).to_pylist()[0]
    names = _list(folder, f"{entry['file']}#{entry['record']}")
    rmtree(folder / "two")
    with pytest.raises(RefusalError, match="is not there; restore it, or remove its") as told:
        purging.purge(folder / "one", names)
    Path(str(told.value).split()[-1]).unlink()
    certificate = purging.purge(folder / "one", names)
    assert certificate.documents == 1
    assert verify(folder / "one") == []


@lru_cache(maxsize=1)
def _shared_builds() -> tuple[Path, Path]:
    """Return a folder with a store and three builds over it, and a copy that nobody may change."""
    raw, folder = audited_build().parent, scratch() / "shared"
    recipe = recipes.load(raw / "recipe.yaml")
    for name, phases in (("one", ()), ("two", ("mixed",)), ("three", ("prose",))):
        make(recipe, raw, folder / name, store=folder / "store", phases=phases)
    copytree(folder, folder.with_name("copy"), symlinks=True)
    return folder, folder.with_name("copy")


def shared_builds() -> Path:
    """Return the folder as new: `one` and `two` have the documents of NAMES, `three` has not."""
    folder, copy_of_it = _shared_builds()
    rmtree(folder)
    copytree(copy_of_it, folder, symlinks=True)
    return folder


def check_purged_everywhere(folder: Path) -> None:
    """Check that all builds of a store are sound, and that nothing below it holds the texts."""
    assert list(holders(folder)) == []
    assert not list(folder.glob("store/purges/*"))
    digests = {}
    for name, phases in (("one", 3), ("two", 1), ("three", 1)):
        assert verify(folder / name) == []
        manifests = read_manifests(folder / name)
        assert len(manifests) == phases
        digests[name] = {one.phase: one.redaction is not None for one in manifests}
    assert digests["two"] == {"mixed": True}
    assert digests["three"] == {"prose": False}
    assert digests["one"]["mixed"]


def test_a_shared_store_is_purged_for_all_its_builds_at_once() -> None:
    folder, names = shared_builds(), listed(*NAMES)
    before = [one.digest for one in read_manifests(folder / "three")]
    with pytest.raises(RefusalError, match=r"two too, which.*--everywhere"):
        purging.purge(folder / "one", names)
    assert purging.plan(folder / "two", names, everywhere=True).builds == 2
    told = crystalmix("purge", folder / "two", "--list", names, "--everywhere", "--erase", "--json")
    own = orjson.loads(told.stdout)
    check_purged_everywhere(folder)
    assert [one.digest for one in read_manifests(folder / "three")] == before
    assert not (folder / "three/purge").exists()
    [path] = folder.glob("one/purge/*/certificate.json")
    other = orjson.loads(path.read_bytes())
    assert (own["id"], own["time"], own["builds"]) == (
        *(other["id"], other["time"]),
        [str(folder / name) for name in ("one", "two")],
    )
    files = {one["file"] for one in own["files"]}
    assert files < {one["file"] for one in other["files"]}  # those of `code` are of `one` alone
    recipe = recipes.load(audited_build().parent / "recipe.yaml")
    make(recipe, audited_build().parent, folder / "one", store=folder / "store")
    check_purged_everywhere(folder)


def test_a_purge_of_a_shared_store_that_is_killed_goes_on_from_any_of_its_builds() -> None:
    killed = undone = 0
    for number, name in zip(
        (9, 12, 60, 130, 200), ("one", "two", "one", "two", "one"), strict=True
    ):
        folder, names = shared_builds(), listed(*NAMES)
        target, words = kills.purge_until_operation, (str(folder / "one"), str(names))
        killed += kills.run(target, *words, number, str(folder)) == -9
        if not list((folder / name).glob("purge/*/request.json")):
            cm.purge(folder / name, names, erase=True, everywhere=True)
        elif not list((folder / name).glob("purge/*/certificate.json")):
            undone += 1
            with pytest.raises(RefusalError, match="not finished"):
                cm.purge(folder / name, names, everywhere=True)
            cm.purge(folder / name, resume=True)
        check_purged_everywhere(folder)
    assert killed == 5
    assert undone >= 3


def test_no_build_begins_in_a_shared_store_until_a_killed_purge_went_on() -> None:
    folder, names, raw = shared_builds(), listed(*NAMES), audited_build().parent
    words = (str(folder / "one"), str(names), 60, str(folder))
    assert kills.run(kills.purge_until_operation, *words) == -9
    recipe = recipes.load(raw / "recipe.yaml")
    for name in ("new", "three"):
        with pytest.raises(RefusalError, match=r"shared/(one|two): purge .* is not finished"):
            make(recipe, raw, folder / name, store=folder / "store", phases=("prose",))
    cm.purge(folder / "two", resume=True)
    make(recipe, raw, folder / "new", store=folder / "store", phases=("prose",))
    check_purged_everywhere(folder)
    assert verify(folder / "new") == []


def test_a_build_that_cannot_be_reached_ends_a_purge_of_a_shared_store_before_it_begins() -> None:
    folder, names = shared_builds(), listed(*NAMES)
    (folder / "two").rename(folder / "moved")
    with pytest.raises(RefusalError, match=r"two: is noted as a build of .* is not there"):
        purging.purge(folder / "one", names, everywhere=True)
    (folder / "moved").rename(folder / "two")
    with alone(folder / "two"), pytest.raises(RefusalError, match="another build is writing"):
        purging.purge(folder / "one", names, everywhere=True)
    assert all(verify(folder / name) == [] for name in ("one", "two", "three"))
    assert not list(folder.glob("*/purge"))


def test_a_new_build_does_not_take_purged_rows_from_a_shared_store_for_whole_ones() -> None:
    folder = shared_builds()
    purging.purge(folder / "one", listed(*NAMES), everywhere=True)
    raw = audited_build().parent
    recipe = recipes.load(raw / "recipe.yaml")
    with pytest.raises(RefusalError, match="documents of source code were purged in the store, by"):
        make(recipe, raw, folder / "new", store=folder / "store")
    make(recipe, raw, folder / "prose", store=folder / "store", phases=("prose",))
    [texts] = folder.glob("one/purge/*/texts.txt")
    out = {"select": {"opt_out": [{"file": str(texts), "match": "digest"}]}}
    more = {"code": out, "python": out}
    write_recipe(folder, duplicates={"exact": "source"}, sources=more)
    (folder / "tokenizer.json").write_bytes((raw / "tokenizer.json").read_bytes())
    without = recipes.load(folder / "recipe.yaml")
    make(without, raw, folder / "new", store=folder / "store")
    assert {Path(path).suffix for path in holders(folder)} <= {".parquet"}  # of dropped records
    assert all(verify(folder / name) == [] for name in ("one", "two", "three", "prose", "new"))


def test_the_command_lists_first_and_logs_what_it_did() -> None:
    build, names = copied(), listed("seen/twice")
    told = crystalmix("purge", build, "--list", names)
    assert "nothing is erased" in told.stdout
    assert not (build / "purge").exists()
    done = orjson.loads(crystalmix("purge", build, "--list", names, "--erase", "--json").stdout)
    [request] = orjson.loads(crystalmix("purge", build, "--json").stdout)
    assert (request["id"], request["state_is"]) == (done["id"], "done")
    head, *_, line = crystalmix("purge", build).stdout.strip().splitlines()
    assert head.split() == ["purge", "time", "records", "names", "by", "state"]
    assert line.split()[2:] == [str(done["documents"] + done["dropped"]), "erased", "done"]
    assert crystalmix("purge", build, "--resume").exit_code == 1
    assert crystalmix("purge", build, "--erase").exit_code == 2


def test_names_that_look_like_purged_ones_are_names(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    last = "'purged:20261130-0123abcd'"
    cases = f"CASE length(content) % 3 WHEN 0 THEN {last} WHEN 1 THEN 'o/' || {last} ELSE 'd' END"
    write_recipe(tmp_path, sources={"python": {"identity": f"{cases} || md5(content)"}})
    out = built(tmp_path)
    names = cm.open(out).sql("SELECT name FROM documents WHERE source = 'python'")["name"]
    path = _list(tmp_path, *map(str, names))
    answer = audits.audit(None, out, lists.read(path))
    assert not any(entry.purged for entry in answer.entries)
    told = crystalmix("purge", out, "--list", path, "--json")
    assert told.exit_code == 0, told.stderr
    seen = orjson.loads(told.stdout)
    assert (seen["gone"], seen["documents"]) == (0, len(names))


def test_a_list_of_purged_texts_that_changed_is_found() -> None:
    out, content = purged_build()
    path = out / "purge" / content.id / "texts.txt"
    before = path.read_bytes()
    path.write_bytes(before.replace(before[:1], b"x", 1))
    told = verify(out)
    path.write_bytes(before)
    assert [line for line in told if line.startswith(f"{path}: ")] == told != []
    assert verify(out) == []


@pytest.mark.parametrize("name", ["mixtures", "history"])
def test_a_build_in_a_folder_of_any_name_is_a_build_of_its_own(tmp_path: Path, name: str) -> None:
    build = tmp_path / name / "build"
    copytree(audited_build(), build, symlinks=True)
    number = purging.purge(build, listed(*NAMES)).id
    assert [path.name for path in (build / "purge").iterdir()] == [number]
    assert list(tmp_path.iterdir()) == [build.parent]
    assert verify(build) == []
    manifest = build / "phases/mixed/manifest.json"
    content = orjson.loads(manifest.read_bytes())
    assert content["redaction"]["certificates"] == [number]


def test_a_mixture_over_what_a_build_was_is_sound_after_a_purge() -> None:
    build = copied()
    path = write_recipe(scratch(), name="other", duplicates={"exact": "source"})
    mix(recipes.load(path), build)
    steps = {"mixed": {"steps": 9}}
    changed = write_recipe(path.parent, duplicates={"exact": "source"}, phases=steps)
    copy(build / "tokenizer.json", path.parent)
    make(recipes.load(changed), audited_build().parent, build)
    rmtree(build / "mixtures")  # so that no certificate names it
    purging.purge(build, listed(*NAMES))
    [other] = build.glob("history/*/mixtures/other")
    verdict = cm.verify(other)
    assert verdict.faults == ()
    assert any("is from before purge" in note for note in verdict.notes)
