"""Packing and shuffling by a recipe reproduce the files of the original code, bit for bit.

Every golden set of packing and of shuffling is built from raw files by `build`, with the settings
its README names, and compared with the original's files: names, arrays, chunks and attributes.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows.shards import Rows
from helpers import laid_out
from helpers.materials import content_digest, shared
from helpers.originals import tokenizer

pytestmark = pytest.mark.golden
LANGUAGES = ("css", "html", "javascript", "python")  # the order of lists/star.txt
PARQUET = [f"input/starcoderdata/{language}" for language in LANGUAGES]
STAR: dict[str, Any] = {"files": PARQUET, "text": "content", "ftfy": True}
JSONL: dict[str, Any] = {"files": [f"jsonl/{language}" for language in LANGUAGES], "ftfy": True}
SLIM: dict[str, Any] = {"files": ["input/slimpajama"], "ftfy": True}
EDGE: dict[str, Any] = {"files": ["input/edge/edge.jsonl"], "ftfy": True, "blank": "keep"}
TEN: dict[str, Any] = {"rows_per_shard": 10}
ALL: dict[str, Any] = {"rows_per_shard": 50_000}
WHOLE: dict[str, Any] = {"pieces": None}
PACKED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # name: source, rows, rows.cerebras
    "star_split_p1": (STAR, ALL, {}),
    "star_split_p2": (STAR, ALL, {"processes": 2}),
    "star_split_p1_fpr20": (JSONL, {"rows_per_shard": 20}, {}),
    "star_nosplit_p1": (STAR, ALL, WHOLE),
    "star_keepbos_p1": (STAR, ALL, {"piece_bos": True}),
    "star_msl512_p1": (JSONL, {**ALL, "msl": 512}, {}),
    "star_noftfy_p1": ({**STAR, "ftfy": False}, ALL, {}),
    "star_nopack_p1": (STAR, ALL, {"join": False}),
    "slim_split_p1": (SLIM, ALL, {}),
    "slim_split_p2": (SLIM, ALL, {"processes": 2}),
    **{f"stage3_{one}": ({**JSONL, "files": [f"jsonl/{one}"]}, ALL, {}) for one in LANGUAGES},
    "edge_split": (EDGE, TEN, {}),
    "edge_nosplit": (EDGE, TEN, WHOLE),
    "edge_keepbos": (EDGE, TEN, {"piece_bos": True}),
    "edge_noftfy": ({**EDGE, "ftfy": False}, TEN, {}),
    "edge_nopack": (EDGE, TEN, {"join": False}),
}


def made(
    folder: Path,
    source: dict[str, Any],
    rows: dict[str, Any],
    domain: dict[str, Any] | None = None,
) -> Path:
    """Build one source as one domain; return the domain's folder.

    The tokenizer is that of the original's FIM, which adds tokens to that of its packing.
    """
    (folder / "tokenizer.json").write_bytes(tokenizer().raw)
    content = {
        "name": "golden",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": rows,
        "sources": {"only": source},
        "domains": {"only": {"sources": ["only"], **(domain or {"shuffle": False})}},
        "phases": {
            "only": {"steps": 1, "batch": 10, "parts": [{"domain": "only", "weight": 1}]},
        },
    }
    path = folder / "recipe.yaml"
    path.write_bytes(orjson.dumps(content))
    build(recipes.load(path), shared("golden", "pipeline"), folder / "out", workers=1)
    assert verify(folder / "out") == []
    return folder / "out" / "domains" / "only"


def plain(path: Path) -> tuple[Rows, tuple[int, ...], int]:
    """Return the array, its chunks and the number of rows told, as any h5py reads them."""
    with h5py.File(path, "r") as file:
        dataset: Any = file["data"]
        return dataset[:], dataset.chunks, int(file.attrs["n_examples"])


def same(ours: Path, theirs: Path) -> None:
    assert [path.name for path in shards.folder(ours)] == [p.name for p in shards.folder(theirs)]
    for path in shards.folder(theirs):
        data, chunks, rows = plain(ours / path.name)
        golden, golden_chunks, golden_rows = plain(path)
        assert data.dtype == golden.dtype == np.int32
        assert np.array_equal(data, golden)
        assert (chunks, rows) == (golden_chunks, golden_rows)


@pytest.mark.parametrize("name", PACKED)
def test_a_recipe_gives_the_files_of_the_original(tmp_path: Path, name: str) -> None:
    source, rows, cerebras = PACKED[name]
    folder = made(tmp_path, source, {**rows, "cerebras": cerebras}) / "epoch-0"
    same(folder, shared("golden", "pipeline", "packed", name))


def test_every_golden_packing_is_compared() -> None:
    assert {path.name for path in shared("golden", "pipeline", "packed").iterdir()} == set(PACKED)


def test_the_exact_dialect_gives_the_rows_of_whole_texts_too(tmp_path: Path) -> None:
    folder = made(tmp_path, STAR, {**ALL, "tail": "drop"}) / "epoch-0"
    [ours] = shards.folder(folder)
    [theirs] = shards.folder(shared("golden", "pipeline", "packed", "star_nosplit_p1"))
    assert np.array_equal(plain(ours)[0], plain(theirs)[0])
    assert content_digest(ours) == content_digest(theirs)
    assert spans.tokens(spans.path_of(ours)) == 166 * 2048


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recipe_shuffles_as_the_original_did(tmp_path: Path, workers: int) -> None:
    rows = {"rows_per_shard": 20, "cerebras": {}}
    shuffle = {"shuffle": {"chunks": 4, "workers": workers}}
    folder = made(tmp_path, STAR, rows, shuffle) / "shuffled"
    same(folder, shared("golden", "pipeline", "shuffle", f"n4_w{workers}"))


def test_a_recipe_goes_the_whole_way_from_parquet_to_shuffled_epochs(tmp_path: Path) -> None:
    """Two epochs of stage 2 of the original: packed, permuted row by row, shuffled together."""
    fim = {"rate": 0.9, "level": "row", "dialect": "cerebras", "processes": 2}
    domain = {"fim": fim, "epochs": 2, "shuffle": {"chunks": 3}}
    folder = made(tmp_path, STAR, {"rows_per_shard": 20, "cerebras": {}}, domain)
    for epoch in range(2):
        theirs = shared("golden", "pipeline", "fim", "stage2_procs2", f"epoch_{epoch}")
        made_rows = laid_out.of_folder(folder / f"epoch-{epoch}-fim")
        assert list(made_rows) == [path.name for path in shards.folder(theirs)]
        assert all(np.array_equal(own, plain(theirs / n)[0]) for n, own in made_rows.items())
    same(folder / "shuffled", shared("golden", "pipeline", "shuffle", "fim_epochs_n3_w1"))


@pytest.mark.parametrize(
    ("first", "language"), [(0, "python"), (1, "css"), (2, "html"), (3, "javascript")]
)
def test_a_recipe_permutes_the_code_of_stage_3_as_the_original_did(
    tmp_path: Path, first: int, language: str
) -> None:
    fim = {"rate": 0.3, "level": "row", "dialect": "cerebras", "first_seed": first}
    source = {**JSONL, "files": [f"jsonl/{language}"]}
    folder = made(tmp_path, source, {**ALL, "cerebras": {}}, {"fim": fim, "epochs": 3})
    for epoch in range(3):
        [(shard, ours)] = laid_out.of_folder(folder / f"epoch-{epoch}-fim").items()
        name = f"{language}_{epoch}"
        theirs = shared("golden", "pipeline", "fim", "stage3_procs2", name, shard)
        with h5py.File(theirs) as golden:  # without chunks of rows and `n_examples`
            assert np.array_equal(ours, golden["data"][:])
