"""Tables of plans, manifests and accounts, and what differs between builds."""

import shutil
from pathlib import Path

import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.errors import DamageError, InputError
from helpers import corpora


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def other(small: Path) -> Path:
    """Return a build of the same corpus with another seed, and one phase more and less."""
    phases = corpora.RECIPE["phases"]
    changes = {"prose": {"steps": 13}, "mixed": None, "last": {**phases["prose"], "steps": 2}}
    folder = small.parent / "other"
    folder.mkdir()
    path = corpora.write_recipe(folder, seed=8, phases=changes)
    build(recipes.load(path, small / "tokenizer.json"), small.parent, folder / "build")
    return folder / "build"


def test_a_manifest_is_told_with_a_bar_for_each_part(small: Path) -> None:
    (manifest,) = read_manifests(small / "phases" / "mixed" / "manifest.json")
    first, second, head, *rows = report.manifest_lines(manifest)
    assert first == "small mixed: 16 steps x 4 rows x 64 tokens, order exact-1, seed 7"
    assert second == f"  manifest {manifest.digest}"
    columns = ["part", "asked", "got", "rows", "tokens", "with", "loss", "epochs", "fim"]
    assert head.split() == columns
    assert rows[0].split()[:5] == ["wiki-odd", "0.250000", "0.250000", "16", "1,024"]
    assert rows[-1].split()[:5] == ["all", "1.000000", "1.000000", "64", "4,096"]
    counted = sum(part.loss_tokens or 0 for part in manifest.parts)
    assert rows[-1].split()[5] == f"{counted:,}"
    assert [row.count("#") for row in rows] == [8, 24, 0]
    assert "0.9 document" in rows[1]


def test_builds_are_compared_phase_by_phase(small: Path, other: Path) -> None:
    assert report.differences(small, small) == []
    told = report.differences(small, other)
    assert told[:2] == [f"mixed: only in {small}", f"last: only in {other}"]
    assert "prose: seed: 7, now 8" in told
    assert "prose: steps: 12, now 13" in told
    assert any(line.startswith("prose: parts.web.shards: [") for line in told)
    assert any(line.startswith("code: previous: ") for line in told)
    one, two = small / "phases" / "prose", other / "phases" / "last"
    assert 'phase: "prose", now "last"' in report.differences(one, two)


def test_diff_ends_with_1_where_something_differs(small: Path, other: Path) -> None:
    equal = corpora.crystalmix("diff", small, small)
    assert (equal.exit_code, equal.stdout) == (0, "equal\n")
    told = corpora.crystalmix("diff", small, other)
    assert told.exit_code == 1
    assert told.stdout.splitlines() == report.differences(small, other)
    assert orjson.loads(corpora.crystalmix("diff", small, other, "--json").stdout)


def test_what_holds_no_manifest_is_told(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: holds no manifest"):
        report.differences(small, tmp_path / "none")
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    (copy / "phases" / "begun").mkdir()  # as a build leaves it that is killed while sealing
    (copy / "phases" / "notes.txt").write_text("not a phase")
    assert [m.phase for m in read_manifests(copy)] == ["prose", "mixed", "code"]
    path = copy / "phases" / "prose" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamageError, match=r"manifest.json: is not valid JSON"):
        read_manifests(copy)
