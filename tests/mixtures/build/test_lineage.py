"""What a build's folders and manifests say of each other: inputs, phases, order, tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import MANIFEST, BuildFolder
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.types import Json
from helpers import corpora


def small(folder: Path, **changes: Any) -> Path:
    corpora.write_corpus(folder)
    corpora.write_recipe(folder, **{"rows": {"rows_per_shard": 32}, **changes})
    return corpora.built(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound build of other numbers and other documents."""
    where = {"where": "meta.redpajama_set_name = 'RedPajamaBook'"}
    return small(tmp_path_factory.mktemp("other"), seed=8, sources={"wiki": where})


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def sealed(out: Path, phase: str, change: Callable[[Json], object]) -> Path:
    """Change a manifest, and make its digest and the seal over the phases anew."""
    path, phases = BuildFolder(out).manifest(phase), BuildFolder(out).phase_set
    content = orjson.loads(path.read_bytes())
    del content["digest"]
    change(content)
    path.write_bytes(canonical({**content, "digest": receipts.digest(content)}))
    digests = {**orjson.loads(phases.read_bytes())["phases"], phase: receipts.digest(content)}
    phases.write_bytes(canonical({"phases": digests, "digest": receipts.digest(digests)}))
    return path


def test_each_manifest_names_the_one_before(made: Path) -> None:
    prose, mixed, code = read_manifests(made)
    assert [m.phase for m in (prose, mixed, code)] == list(corpora.RECIPE["phases"])
    assert prose.previous is None
    assert (mixed.previous, code.previous) == (prose.digest, mixed.digest)


def test_phases_are_listed_by_lineage_not_by_name(tmp_path: Path) -> None:
    one = corpora.RECIPE["phases"]["prose"]
    names = ["zebra", "ant", "mole", "bee"]
    gone = dict.fromkeys(corpora.RECIPE["phases"])
    phases = {**gone, **{name: {**one, "steps": i + 1} for i, name in enumerate(names)}}
    out = small(tmp_path, phases=phases)
    assert [manifest.phase for manifest in read_manifests(out)] == names
    assert [manifest.phase for manifest in read_manifests(out / "phases" / "ant")] == ["ant"]


def test_a_missing_previous_manifest_is_told(out: Path) -> None:
    gone = manifests.read(out / "phases" / "mixed").digest
    shutil.rmtree(out / "phases" / "mixed")
    path = out / "phases" / "code" / MANIFEST
    lost = BuildFolder(out).manifest("mixed")
    assert verify(out) == [
        f"{lost}: is missing, though the build sealed it; build again",
        f"{path}: names a previous manifest {gone[:12]} that is not here",
    ]


def test_an_edited_manifest_is_told(out: Path) -> None:
    path = out / "phases" / "mixed" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"steps": 16', b'"steps": 15'))
    assert f"{path}: was edited (its digest does not match its content); restore it, or remove " \
        "it and build again" in verify(out)  # fmt: skip


def test_a_manifest_sealed_anew_breaks_the_one_after_it(out: Path) -> None:
    sealed(out, "mixed", lambda content: content.update(name="another"))
    path = out / "phases" / "code" / MANIFEST
    (told,) = verify(out)
    assert told.startswith(f"{path}: names a previous manifest ")


def of_part(key: str, value: Any) -> Callable[[Json], object]:
    return lambda content: content["parts"][1].update({key: value})


def of_shard(key: str, value: Any) -> Callable[[Json], object]:
    return lambda content: content["parts"][1]["shards"][-1].update({key: value})


# Of the last phase, which no other names; its digest made anew. Part 1 is a half of `code`.
EDITS: list[tuple[Callable[[Json], object], str]] = [
    (lambda c: c.update(steps=11), "part python: says 24 rows, the order gives 26"),
    (lambda c: c.update(batch=5), "part python: says 24 rows, the order gives 30"),
    (lambda c: c.update(msl=32), "part python: domains/python/shuffled/data-00000.h5 has 32 rows "
     "of 64 tokens, not as it says"),
    (lambda c: c.update(seed=6), "part python: says seed 6, its rows were made with 7"),
    (lambda c: c.update(phase="prose"), "is of phase prose, its folder says code"),
    (lambda c: c.update(order_version="exact-0"),
     "is ordered by exact-0; only exact-1 can be checked here"),
    (lambda c: c["tokenizer"].update(pad=0),
     "part python: says another tokenizer than its rows were made with"),
    (lambda c: c.update(previous="0" * 64), "names a previous manifest 000000000000 that is not h"),
    (lambda c: c["parts"].reverse(), ""),  # only a relabelling: nothing to tell
    (of_part("domain", "web"), "part code-0-0.5: draws from shuffled of code, not of web"),
    (of_part("asked", 0.4), "its asked shares are not those of what was asked"),
    (of_part("budget", {"weight": 0.4}), "its integer weights are not those of what was asked"),
    (of_part("budget", {"tokens": 0.4}), "can't be checked ("),
    (of_part("weight", 4), "its integer weights are not those of what was asked"),
    (lambda c: c.update(cerebras={"seed": 1, "subset": "2.0.3", "zeros": "aligned"}),
     "is ordered by exact-1; only cerebras-1.9 can be checked here"),
    (of_part("rows", 13), "part code-0-0.5: says 13 rows, the order gives 12"),
    (of_part("tokens", 1), "part code-0-0.5: says tokens 1, its rows and shards give 768"),
    (of_part("got", 0.4), "part code-0-0.5: says got 0.4, its rows and shards give 0.3"),
    (of_part("epochs", 3.0), "part code-0-0.5: says epochs 3.0, its rows and shards give 0.1176"),
    (of_part("loss_tokens", 1), "part code-0-0.5: says loss_tokens 1, its rows and shards give "),
    (of_shard("loss_tokens", 1), "part code-0-0.5: domains/code/shuffled/data-00003.h5 has "),
    (of_part("available", 99), "part code-0-0.5: says available 99, its rows and shards give 102"),
    (of_part("fim", None), "part code-0-0.5: says fim None, its rows were made with {"),
    (of_part("variants", 1), "part code-0-0.5: says variants 1, its rows were made with 2"),
    (of_part("digest", "0"), "part code-0-0.5: its digest does not follow from its shards"),
    (of_shard("path", "domains/no/data-00000.h5"),
     "part code-0-0.5: domains/no/data-00000.h5 is in no receipt"),
    (of_shard("rows", 31), "part code-0-0.5: domains/code/shuffled/data-00003.h5 has 32 rows of "),
    (of_shard("digest", "0"), "part code-0-0.5: domains/code/shuffled/data-00003.h5 has another "
     "digest than the manifest says"),
    (of_shard("first", 7), "part code-0-0.5: its digest does not follow from its shards"),
    (of_shard("last", 40), "part code-0-0.5: domains/code/shuffled/data-00003.h5: no rows 0 to 40"),
    (of_part("weight", "heavy"), "can't be checked ("),
    (of_part("shards", []), "can't be checked ("),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "told"), EDITS, ids=[told[:60] or "-" for _, told in EDITS])
def test_an_edited_manifest_is_told_though_its_digest_was_made_anew(
    out: Path, edit: Callable[[Json], object], told: str
) -> None:
    path = sealed(out, "code", edit)
    lines = verify(out)
    assert all(line.startswith(f"{path}: ") for line in lines), lines
    if told:
        assert any(line.startswith(f"{path}: {told}") for line in lines), lines
    else:
        assert lines == []


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("sources/wiki", "domains/wiki/epoch-0/receipt.json: was made from another wiki than"),
        ("domains/wiki/epoch-0", "domains/wiki/epoch-0/receipt.json: was made from another wiki"),
        ("domains/wiki/shuffled", "domains/wiki/shuffled/receipt.json: was made from another ep"),
        ("domains/code/epoch-1", "domains/code/shuffled/receipt.json: was made from another ep"),
        ("domains/python/epoch-0-fim", "domains/python/shuffled/receipt.json: was made from an"),
    ],
)
def test_a_folder_of_another_build_is_told(out: Path, other: Path, folder: str, told: str) -> None:
    assert verify(other) == []
    shutil.rmtree(out / folder)
    shutil.copytree(other / folder, out / folder)
    assert any(line.startswith(f"{out}/{told}") for line in verify(out))


def test_a_folder_whose_inputs_are_gone_is_told(out: Path) -> None:
    shutil.rmtree(out / "domains" / "code" / "epoch-1")
    path = out / "domains" / "code" / "shuffled" / receipts.NAME
    assert verify(out) == [
        f"{path}: was made from epoch-1, which is not here",
        f"{out / 'domains/code/epoch-1'}: is missing, though the build sealed it; build again",
    ]


def test_a_manifest_of_another_build_is_told(out: Path, other: Path) -> None:
    name = "phases/prose/manifest.json"
    shutil.copy(other / name, out / name)
    told = verify(out)
    assert any(line.startswith(f"{out / name}: part wiki-even: ") for line in told)
    assert any("mixed/manifest.json: names a previous manifest" in line for line in told)
    assert f"{out / name}: is not the one that the build sealed; build again" in told


def test_another_tokenizer_a_broken_one_and_none_are_told(out: Path) -> None:
    path = out / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    told = verify(out)
    assert len(told) == 3
    assert told[0].startswith(f"{path}: has another fingerprint than phase code was built with (")
    path.write_bytes(
        data.replace(b'"<|fim_pad|>"', b'"<|fim_bad|>"').replace(b"\xe2\x96\x81a", b"a")
    )
    assert verify(out)[0].startswith(f"{path}: ")
    path.write_bytes(data[:-10])
    assert verify(out)[0].startswith(f"{path}: can't be loaded (")
    path.unlink()
    assert verify(out) == [f"{path}: is missing; restore the tokenizer of this build"]


def test_a_build_mends_its_tokenizer_and_its_lost_manifests(out: Path, made: Path) -> None:
    recipe = recipes.load(made.parent / "recipe.yaml")
    whole = corpora.contents(out)
    (out / "tokenizer.json").write_bytes(b"{}")
    shutil.rmtree(out / "phases")
    build(recipe, made.parent, out)
    assert corpora.contents(out) == whole
    assert verify(out) == []
