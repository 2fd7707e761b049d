"""Files of cards: of imported rows and mixtures too; each with the sha256 of its bytes."""

import json
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from helpers.described import described
from helpers.hubs import ONE, golden_hub, write


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    root = golden_hub(folder / "published")
    import_shards(root, folder / "build", ImportSettings((write(folder / "one.yaml", ONE),)))
    return folder / "build"


def listed(build: Path) -> dict[str, str]:
    """Return the files that Croissant lists, with their sha256."""
    content = json.loads(cm.card(build, "croissant").text)
    return {entry["contentUrl"]: entry["sha256"] for entry in content["distribution"]}


def named(build: Path) -> set[str]:
    """Return manifests, and the shards that they name."""
    paths = [*build.glob("phases/*/manifest.json")]
    every: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in paths]
    shards = {s["path"] for manifest in every for part in manifest["parts"] for s in part["shards"]}
    return shards | {path.relative_to(build).as_posix() for path in paths}


def check(build: Path, more: set[str]) -> None:
    files = listed(build)
    assert set(files) == named(build) | more
    for name, digest in files.items():
        assert sha256((build / name).read_bytes()).hexdigest() == digest


def test_cards_of_imported_rows_list_manifests_and_shards(imported: Path) -> None:
    check(imported, set())
    text = cm.card(imported).text
    assert "Documents kept, of all sources: not known of imported rows" in text
    assert "configs" not in cm.card(imported, "dataset-card").text.split("---\n")[1]
    elements = json.loads(cm.card(imported, "spdx").text)["@graph"]
    files = {e["name"] for e in elements if e["type"] == "software_File"}
    assert files == named(imported)
    lines = cm.card(imported, "openlineage").text.splitlines()
    for event in map(json.loads, lines):
        assert bool(event["inputs"]) == (".phase." in event["job"]["name"])
        assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] > 0
    assert str(imported.parent) not in "\n".join(lines)


def sides(build: Path) -> set[str]:
    """Return what lies beside rows and says where they are from."""
    patterns = ("sources/*/documents.parquet", "domains/*/*/data-*.parquet", "tokenizer.json")
    return {
        path.relative_to(build).as_posix() for pattern in patterns for path in build.glob(pattern)
    }


def test_cards_of_a_build_list_all_that_its_rows_are_from() -> None:
    check(described(), sides(described()))


def test_cards_of_a_mixture_over_a_build_describe_its_own_phases(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    copytree(described().parent, folder, symlinks=True)
    parts = [{"domain": "wiki", "weight": 0.4}, {"domain": "web", "weight": 0.6}]
    phase = {"steps": 3, "batch": 4, "max_shared": 1, "parts": parts}
    recipe = YAML(typ="safe").load(folder / "recipe.yaml")
    recipe |= {"name": "other", "phases": {"alone": phase}}
    with (folder / "other.yaml").open("w") as file:
        YAML().dump(recipe, file)
    mixture = cm.mix(folder / "other.yaml", folder / "build").path
    drawn = {s for s in sides(mixture) if "/wiki/" in s or "/web/" in s or "/" not in s}
    check(mixture, drawn)
    text = cm.card(mixture).text
    assert "### Encyclopedia\n" in text
    assert "### book\n" not in text
