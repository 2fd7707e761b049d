"""Rows that are laid out: of every kind of packing they are written once, as packing made them."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.types import Json
from helpers import corpora, laid_out
from helpers.chat import NAMES, with_tokens
from helpers.materials import raw

FITTED = {"pack": "best_fit", "group_tokens": 700}
PROSE: dict[str, Json] = {  # domains over the same prose, by what they ask of rows
    "stream": {},
    "apart": {"window": "apart"},
    "within": {"loss_across": False},
    "best": FITTED,
    "across": {**FITTED, "documents": "masked", "loss_across": True},
    "short": {**FITTED, "too_long": "truncate"},
    "next": {"pack": "next_fit", "group_tokens": 700},
    "zoo": {"cerebras": {"join": False}},
}
MIDDLE = {"rate": 0.8, "loss": "middle"}
UPSAMPLE = {"by": "max_stars_count", "curve": [[0, 0], [0.3, 0.5], [1, 3]]}
CODE: dict[str, Json] = {
    "middle": {"fim": MIDDLE},
    "epochs": {"fim": MIDDLE, "epochs": 2, "rows": FITTED},
    "joined": {"fim": {"rate": 0.9}, "epochs": 2, "rows": FITTED, "shuffle": False},
    "permuted": {"fim": {"rate": 0.9, "level": "row"}, "epochs": 2},
    "permuted_middle": {"fim": {**MIDDLE, "level": "row", "cut": "token"}},
    "original": {"fim": {"rate": 0.9, "level": "row", "dialect": "cerebras"}, "epochs": 2},
    "upsampled": {"upsample": UPSAMPLE},
    "upsampled_fits": {"upsample": UPSAMPLE, "rows": FITTED},
}
TALKS = {"talk": {"window": "apart"}, "talk_fits": {**FITTED, "too_long": "split_turns"}}
KINDS = (*PROSE, *CODE, *TALKS)


def recipe_of(folder: Path, name: str, shuffled: bool = True) -> Path:
    """Write a recipe with a domain of every kind, and its raw files."""
    if not (folder / "talk.jsonl").exists():
        corpora.write_corpus(folder)
        (folder / "tokenizer.json").write_bytes(with_tokens(corpora.tokenizer(), NAMES))
        rng = np.random.default_rng(5)
        talks = [
            {
                "conversations": [
                    {"from": role, "value": corpora.sentences(rng, 1 + number % 4)}
                    for _ in range(1 + number % 3)
                    for role in ("human", "gpt")
                ]
            }
            for number in range(120)
        ]
        raw(folder / "talk.jsonl", talks)
    code = {"sources": ["code"]}
    chat = {"template": "crystal"}
    domains: Json = {
        **{name: {"sources": ["wiki"], "rows": rows} for name, rows in PROSE.items()},
        **{name: {**code, **more} for name, more in CODE.items()},
        **{n: {"sources": ["talk"], "rows": rows, "chat": chat} for n, rows in TALKS.items()},
    }
    for domain in domains.values() if not shuffled else ():
        domain["shuffle"] = False
    content = orjson.loads(orjson.dumps(corpora.RECIPE))
    content["rows"] = {"msl": 32, "rows_per_shard": 40}
    content["sources"]["code"]["keep"].append("max_stars_count")
    content["sources"]["talk"] = {"files": ["talk.jsonl"], "format": "chat"}
    content["domains"] = domains
    parts = [{"domain": name, "weight": 1 / len(domains)} for name in domains]
    content["phases"] = {"all": {"steps": 4, "batch": 32, "max_shared": 1, "parts": parts}}
    path = folder / f"{name}.json"
    path.write_bytes(orjson.dumps(content))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("once")
    build(recipes.load(recipe_of(root, "shuffled")), root, root / "out", workers=1)
    return root / "out"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_written_once_as_packing_counted_them(built: Path, kind: str) -> None:
    domain = built / "domains" / kind
    rows = laid_out.packed(domain)
    assert not [*domain.glob("epoch-*/*.h5")]
    packed = sorted(domain.glob("epoch-*-fim")) or sorted(domain.glob("epoch-*"))
    entries = {
        f"{folder.name}/{entry.name}": entry
        for folder in packed
        for entry in receipts.read(folder).shards
    }
    assert rows.keys() == entries.keys()
    for name, entry in entries.items():
        assert sha256(rows[name].astype("<i4").tobytes()).hexdigest() == entry.digest
    assert rows_files(receipts.read(domain / ("shuffled" if kind != "joined" else "joined")))


def test_they_are_the_rows_of_a_domain_that_is_not_shuffled(built: Path) -> None:
    root = built.parent
    path = recipe_of(root, "unshuffled", shuffled=False)
    build(recipes.load(path), root, root / "plain", workers=1)
    compared = 0
    for kind in KINDS:
        fim = "-fim" if kind in ("permuted", "permuted_middle", "original") else ""
        folder = root / "plain" / "domains" / kind / f"epoch-0{fim}"
        for shard in shards.folder(folder):
            own = laid_out.of_folder(built / "domains" / kind / folder.name)[shard.name]
            assert np.array_equal(own, shards.read(shard)), f"{kind}/{shard.name}"
            compared += 1
    assert compared > 3 * len(PROSE)


def test_any_number_of_workers_makes_the_same_and_it_verifies(built: Path) -> None:
    root = built.parent
    build(recipes.load(root / "shuffled.json"), root, root / "by-3", workers=3)
    assert corpora.contents(root / "by-3") == corpora.contents(built)
    assert verify(built) == []
    [manifest] = manifests.read_manifests(built)
    assert len(manifest.parts) == len(KINDS)
