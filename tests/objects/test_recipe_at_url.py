"""Recipes, tokenizers, lists and raw files in a bucket: a build of them is that of the files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import UsageError
from helpers import corpora, runs, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
TIMES = ("modified", "changed", "inode", "digest")  # the last one is of the receipt
LISTS = {
    "wiki": {"select": {"opt_out": [{"file": "lists/out.txt"}]}},
    "web": {"select": {"decontaminate": {"files": ["evaluations"], "ngram": 5, "distinct": 3}}},
    "notes": {"files": ["notes"], "format": "text"},
    "tales": {"files": ["notes/t*.md"], "format": "text"},
}
DOMAINS = {"notes": {"sources": ["notes"]}, "tales": {"sources": ["tales"]}}
PHASE = {"steps": 4, "batch": 2, "max_shared": 1}
PARTS = [{"domain": name, "weight": 0.5, "max_epochs": 20} for name in DOMAINS]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recipe, what lies beside it, and its build."""
    folder = tmp_path_factory.mktemp("recipe")
    corpora.write_corpus(folder)
    for name, text in {
        "lists/out.txt": "wiki-3\n",
        "evaluations/task.jsonl": '{"q": "crystal lattice quartz grain amber river"}\n',
        "notes/tea.md": corpora.TALE * 9,
        "notes/two.md": corpora.TALE.upper() * 9,
        "notes/rest.txt": "stone ember willow " * 99,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    phases = {"notes": {**PHASE, "parts": PARTS}}
    recipe = corpora.write_recipe(folder, sources=LISTS, domains=DOMAINS, phases=phases)
    cm.build(recipe, folder / "build")
    return folder


@pytest.fixture(scope="module")
def raw(here: Path) -> Iterator[str]:
    """Give the url at which what the recipe needs lies."""
    with s3_server.bucket(refused=11) as url:
        for path in sorted(here.rglob("*")):
            name = path.relative_to(here)
            if path.is_file() and name.parts[0] != "build":
                s3fs.S3FileSystem().put_file(path, f"{url}/raw/{name}")
        yield f"{url}/raw"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "cache"))


def manifests(build: Path) -> dict[str, Any]:
    """Return manifests, and receipts of sources but for when files were written, by name."""
    kept = {
        str(path.relative_to(build)): path.read_bytes() for path in build.rglob("manifest.json")
    }
    receipts = {
        path: json.loads(path.read_bytes()) for path in build.glob("sources/*/receipt.json")
    }
    return {**kept, **{path.parent.name: timeless(content) for path, content in receipts.items()}}


def timeless(content: Any) -> Any:
    if isinstance(content, list):
        return [timeless(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    return {key: timeless(value) for key, value in content.items() if key not in TIMES}


def test_a_recipe_at_a_url_builds_what_the_file_does(raw: str, here: Path, tmp_path: Path) -> None:
    told = corpora.crystalmix(
        "build", f"{raw}/recipe.yaml", "--out", tmp_path / "there", "--workers", 2
    )
    assert told.exit_code == 0, told.stderr
    assert manifests(tmp_path / "there") == manifests(here / "build")
    assert corpora.crystalmix("verify", tmp_path / "there", "--workers", 1).exit_code == 0
    for path in [*(tmp_path / "there").rglob("*.json"), *(tmp_path / "cache").rglob("*.*")]:
        assert not path.is_file() or b"hush" not in path.read_bytes()
    planned = corpora.crystalmix("plan", f"{raw}/recipe.yaml", "--data", raw)
    assert planned.stdout == corpora.crystalmix("plan", here / "recipe.yaml", "--data", here).stdout
    again = corpora.crystalmix("plan", f"{raw}/recipe.yaml", "--out", tmp_path / "there")
    assert again.stdout == (
        corpora.crystalmix("plan", here / "recipe.yaml", "--out", here / "build").stdout
    )


def test_raw_files_and_a_tokenizer_at_urls_of_a_recipe_here(
    raw: str, here: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (here / "recipe.yaml").read_text()
    recipe.write_text(text.replace("path: tokenizer.json", f"path: {raw}/tokenizer.json"))
    cm.build(recipe, tmp_path / "there", data=raw)
    assert manifests(tmp_path / "there") == manifests(here / "build")
    recipe.write_text(text.replace("path: tokenizer.json", "path: none.json"))
    cm.build(recipe, tmp_path / "other", data=raw, tokenizer=f"{raw}/tokenizer.json")
    assert manifests(tmp_path / "other") == manifests(here / "build")


def test_a_mixture_and_a_run_file_at_urls(raw: str, here: Path, tmp_path: Path) -> None:
    cm.copy(here / "build", f"{raw}-build")
    cm.copy(f"{raw}-build", tmp_path / "build")
    mixed = cm.mix(f"{raw}/recipe.yaml", tmp_path / "build", name="same")
    assert [phase.manifest.digest for phase in mixed.phases.values()] == [
        phase.manifest.digest for phase in cm.open(here / "build").phases.values()
    ]
    s3fs.S3FileSystem().put_file(runs.run_file(), f"{raw}/run.yaml")
    cm.train(runs.small_build(), f"{raw}/run.yaml", out=tmp_path / "run", phases=["prose"])
    assert runs.recorded(tmp_path / "run", "prose") == runs.recorded(runs.undisturbed(), "prose")
    assert runs.weights(tmp_path / "run", "prose") == runs.weights(runs.undisturbed(), "prose")


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("s3://me:hush@kept/recipe.yaml", {}),
        ("https://host/recipe.yaml?token=hush", {}),
        ("recipe.yaml", {"data": "s3://me:hush@kept/raw"}),
        ("recipe.yaml", {"tokenizer": "https://host/tokenizer.json?sig=hush"}),
    ],
)
def test_a_url_with_credentials_is_refused(
    recipe: str, more: dict[str, str], here: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="carries credentials") as told:
        cm.build(here / recipe if "://" not in recipe else recipe, tmp_path / "there", **more)
    assert "hush" not in str(told.value)


def test_what_is_not_there_is_told_with_its_url(raw: str, tmp_path: Path) -> None:
    told = corpora.crystalmix("plan", f"{raw}/none.yaml")
    assert (told.exit_code, told.stderr) == (
        2,
        f"crystalmix: {raw}/none.yaml: no such object; check the url\n",
    )
    told = corpora.crystalmix(
        "build", f"{raw}/recipe.yaml", "--data", f"{raw}/none", "--out", tmp_path / "there"
    )
    assert told.exit_code == 1
    assert f"{raw}/none/" in told.stderr
    assert "matches no file" in told.stderr
