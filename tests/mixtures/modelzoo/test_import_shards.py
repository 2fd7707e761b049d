"""Imports: manifests over shards that are there, their rows those of Model Zoo, nothing touched."""

import os
import shutil
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import orjson
import pytest

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.manifest.cerebras_order import ZooMixture
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import (
    CrystalmixError,
    InputError,
    RefusalError,
    StaleError,
    UsageError,
)
from crystalmix.prep.runtime.types import Json
from helpers.corpora import crystalmix, merged
from helpers.hubs import ONE, TWO, fake, golden_hub, params_of, write
from helpers.modelzoo_rows import subset_rows
from helpers.runs import run_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_hub(tmp_path_factory.mktemp("published"))


@pytest.fixture
def params(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "one.yaml", ONE), write(tmp_path / "two.yaml", TWO)


@pytest.fixture
def out(root: Path, params: tuple[Path, Path], tmp_path: Path) -> Path:
    import_shards(root, tmp_path / "out", ImportSettings(params))
    return tmp_path / "out"


def content(folder: Path) -> Json:
    """Return bytes and times of every file of a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and sha256(path.read_bytes()).digest())
        for path in sorted(folder.rglob("*"))
    }


def rows_of(folder: Path) -> list[tuple[str, int]]:
    """Return every row of a folder's files in the order of their names."""
    found: list[tuple[str, int]] = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            found += [(path.name, row) for row in range(len(file["data"]))]
    return found


def consumed(out: Path, phase: str, steps: range) -> list[tuple[str, int]]:
    manifest = manifests.read(out / "phases" / phase)
    refs = manifest.rows(steps.start * manifest.batch, steps.stop * manifest.batch)
    return [
        (manifest.paths[shard], row)
        for shard, row in zip(refs.shard.tolist(), refs.row.tolist(), strict=True)
    ]


@pytest.mark.golden
def test_the_rows_of_each_step_are_those_of_model_zoo(root: Path, out: Path) -> None:
    star, slim = rows_of(root / "phase1/Sets/star_part0of2"), rows_of(root / "phase1/Sets/slim")
    css = rows_of(root / "phase3/train/css")
    tenth = [star[i] for i in subset_rows(len(star), [(0.0, 0.1)], "2.0.3")]
    for phase, steps, seed, weights, lists, names in (
        ("one", 70, 1, [0.6, 0.4], [star, slim], ["star_part0of2", "slim"]),
        ("two", 20, 3, [0.7, 0.3], [css, tenth], ["css", "star_part0of2"]),
    ):
        refs = ZooMixture([len(rows) for rows in lists], weights, seed).refs(0, steps * 6)
        wanted: list[tuple[str, int]] = []
        for part, row in zip(refs.part.tolist(), refs.row.tolist(), strict=True):
            file, number = lists[part][row]
            wanted.append((f"domains/{names[part]}/imported/{file}", number))
        assert consumed(out, phase, range(steps)) == wanted


@pytest.mark.golden
def test_the_subset_of_1_9_1_is_another_tenth(root: Path, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "faulty"
    params = (tmp_path / "one.yaml", tmp_path / "two.yaml")
    import_shards(root, other, ImportSettings(params, subset="1.9.1"))
    star = rows_of(root / "phase1/Sets/star_part0of2")
    for place, version in ((out, "2.0.3"), (other, "1.9.1")):
        wanted = {star[i] for i in subset_rows(len(star), [(0.0, 0.1)], version)}
        found = consumed(place, "two", range(20))
        assert {(Path(p).name, row) for p, row in found if "star" in p} == wanted


@pytest.mark.golden
def test_an_import_touches_nothing_and_copies_nothing(
    root: Path, params: tuple[Path, Path], tmp_path: Path
) -> None:
    before = content(root)
    out = tmp_path / "out"
    made = [import_shards(root, out, ImportSettings(params), workers=n) for n in (2, 1)]
    assert made[0] == made[1]
    assert content(root) == before
    links = list(out.rglob("*.h5"))
    assert len(links) == 12
    assert all(path.is_symlink() for path in links)
    assert sum(path.stat().st_size for path in out.rglob("*.json")) < 50_000
    assert not list(out.rglob("*.done"))


@pytest.mark.golden
def test_an_intact_import_is_sound_and_shown(out: Path) -> None:
    assert verify(out) == []
    one, two = read_manifests(out)
    assert (one.phase, two.phase, two.previous) == ("one", "two", one.digest)
    assert one.imported is not None
    assert one.imported["digests"] == "rows"
    assert one.tokenizer.fingerprint is None
    told = crystalmix("show", out).stdout
    assert "domains/slim/imported" in told
    assert report.differences(out, out) == []


@pytest.mark.golden
def test_a_changed_and_a_missing_shard_are_told(out: Path) -> None:
    shard = out / "domains/slim/imported/examples_0_0.h5"
    link = shard.readlink()
    copy = out.parent / "copy.h5"
    shutil.copyfile(link, copy)
    with h5py.File(copy, "r+") as file:
        file["data"][3, 0, 5] += 1
    shard.unlink()
    shard.symlink_to(copy)
    assert any(line.startswith(f"{shard}: ") for line in verify(out))
    copy.unlink()
    assert any(line.startswith(f"{shard}: is missing") for line in verify(out))
    shard.unlink()
    shard.symlink_to(link)
    assert verify(out) == []
    other = out / "domains/slim/imported/examples_0_1.h5"
    shard.unlink()
    shard.symlink_to(other.readlink())
    assert any("its rows" in line or "bytes" in line for line in verify(out))


@pytest.mark.golden
def test_without_digests_names_and_sizes_are_checked_and_that_is_said(
    root: Path, params: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (one, two) = import_shards(root, out, ImportSettings(params, digests=False))
    assert one.imported is not None
    assert one.imported["digests"] == "names and sizes"
    notes: list[str] = []
    assert verify(out, note=notes.append) == []
    assert any("12 shards were imported without digests" in note for note in notes)
    assert "names, sizes" in crystalmix("verify", out, "--workers", 1).stderr
    whole = import_shards(root, tmp_path / "whole", ImportSettings(params))
    assert [m.steps for m in whole] == [m.steps for m in (one, two)]
    assert consumed(out, "two", range(20)) == consumed(tmp_path / "whole", "two", range(20))
    shard = out / "domains/slim/imported/examples_0_0.h5"
    target = shard.readlink()
    shard.unlink()
    assert any("examples_0_0.h5: is missing" in line for line in verify(out))
    shard.write_bytes(target.read_bytes()[:-9])
    assert any(line.startswith(f"{shard}: ") for line in verify(out))


@pytest.mark.golden
def test_a_step_is_shown_from_the_manifest_alone(out: Path) -> None:
    told = orjson.loads(crystalmix("show", out, "--step", "two:19", "--json").stdout)
    wanted = consumed(out, "two", range(19, 20))
    assert [(entry["shard"], entry["row"]) for entry in told] == wanted
    assert [entry["slot"] for entry in told] == list(range(6))
    lines = crystalmix("show", out, "--step", "two:19").stdout.splitlines()
    assert lines[0].split() == ["slot", "part", "epoch", "shard", "row"]
    assert len(lines) == 7
    for asked, word in (("two", "PHASE:STEP"), ("x:1", "one, two"), ("two:20", "0 to 19")):
        result = crystalmix("show", out, "--step", asked)
        assert (result.exit_code, word in result.stderr) == (2, True)


def test_an_import_is_trained_on_and_traced(tmp_path: Path) -> None:
    root, out, run = fake(tmp_path / "hub", "x/data-00000.h5"), tmp_path / "out", tmp_path / "run"
    path = params_of(tmp_path, "x", vocab_size=424).rename(tmp_path / "one.yaml")
    result = crystalmix("import", root, "--out", out, "--params", path, "--workers", 1)
    assert result.exit_code == 0
    assert result.stdout.startswith("hub one: 70 steps x 6 rows x 4 tokens, order cerebras-1.9")
    words = ["train", out, "--run", run_file(), "--out", run, "--stop", 1]
    assert crystalmix(*words).exit_code == 0
    assert crystalmix("verify", out, "--run", run, "--workers", 1).exit_code == 0
    told = orjson.loads(crystalmix("trace", run, "--step", "one:0", "--json").stdout)
    assert [(e["shard"], e["row"]) for e in told] == consumed(out, "one", range(1))
    assert "has no spans" in crystalmix("trace", run, "--step", "one:0").stdout
    result = crystalmix("trace", run, "--document", "x")
    assert "it was imported and knows no documents" in result.stderr
    assert "has no step 7 (recorded: 0 to 0)" in crystalmix("trace", run, "--step", "one:7").stderr
    assert crystalmix("sql", run, "SELECT count(*) FROM spans").exit_code == 0
    [part] = orjson.loads(crystalmix("trace", run, "--repeats", "one", "--json").stdout)
    assert (part["documents"], part["seen"]) == (None, 0)


@pytest.mark.golden
def test_what_a_zero_weight_does_in_1_9_is_reproduced_by_name(root: Path, tmp_path: Path) -> None:
    mixture = [{"data_dir": "css", "weight": 0.0}, {"data_dir": "slim", "weight": 1.0}]
    path = write(tmp_path / "zero.yaml", merged(ONE, {"train_input": {"mixture": mixture}}))
    (made,) = import_shards(root, tmp_path / "out", ImportSettings((path,), zeros="misaligned"))
    rows = [len(rows_of(root / place)) for place in ("phase3/train/css", "phase1/Sets/slim")]
    wanted = ZooMixture(rows, [0.0, 1.0], 1, "misaligned").refs(0, 420)
    np.testing.assert_array_equal(made.rows(0, 420).part, wanted.part)
    assert [part.rows for part in made.parts] == [0, 420]
    assert verify(tmp_path / "out") == []


def test_places_that_can_not_be_are_refused(tmp_path: Path) -> None:
    root = fake(tmp_path / "hub", "x/data-00000.h5", "y/data-00000.h5", msl=4)
    settings = ImportSettings((params_of(tmp_path, "x"),))
    with pytest.raises(UsageError, match="which is not to be touched"):
        import_shards(root, root / "out", settings)
    with pytest.raises(UsageError, match="is no folder"):
        import_shards(tmp_path / "none", tmp_path / "out", settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.h5 file"):
        import_shards(tmp_path / "empty", tmp_path / "out", settings)
    with pytest.raises(UsageError, match="--subset: must be 1.9.1 or 2.0.3, got '1.9'"):
        ImportSettings(settings.params, subset="1.9")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must name one file a phase"):
        import_shards(root, tmp_path / "out", ImportSettings(settings.params * 2))
    (tmp_path / "built").mkdir()
    (tmp_path / "built/tokenizer.json").write_text("{}")
    with pytest.raises(StaleError, match="holds a build of raw files"):
        import_shards(root, tmp_path / "built", settings)
    fake(root, "y/data-00001.h5", msl=8)
    path = params_of(tmp_path, "y")
    with pytest.raises(RefusalError, match="rows have different lengths"):
        import_shards(root, tmp_path / "out", ImportSettings((path,)))


def test_what_was_imported_is_not_read_again_and_what_changed_is_told(tmp_path: Path) -> None:
    root, out = fake(tmp_path / "hub", "x/data-00000.h5", "x/data-00001.h5"), tmp_path / "out"
    settings = ImportSettings((params_of(tmp_path, "x"),))
    first = import_shards(root, out, settings)
    shard = root / "x/data-00001.h5"
    data, times = shard.read_bytes(), shard.stat()
    shard.write_bytes(b"\0" * len(data))  # the size it had: only who reads it again can tell
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert import_shards(root, out, settings) == first
    assert any("data-00001.h5" in line for line in verify(out))
    shard.write_bytes(data)
    (root / "x/data-00002.h5").write_bytes(data)
    with pytest.raises(StaleError, match="was built otherwise"):
        import_shards(root, out, settings)
    moved = root.rename(tmp_path / "moved")
    (moved / "x/data-00002.h5").unlink()
    with pytest.raises(CrystalmixError, match="is missing"):
        import_shards(moved, out, settings)
    shutil.copytree(moved, root)
    with pytest.raises(StaleError, match="links to another file"):
        import_shards(moved, out, settings)


def test_a_shard_that_is_none_is_told_by_its_own_name(tmp_path: Path) -> None:
    root = fake(tmp_path / "hub", "x/data-00000.h5")
    bad = root / "x/data-00001.h5"
    bad.write_bytes(b"no shard")
    settings = ImportSettings((params_of(tmp_path, "x"),))
    with pytest.raises(CrystalmixError) as told:
        import_shards(root, tmp_path / "out", settings)
    assert str(told.value).startswith(f"{bad}: is not a readable shard")
