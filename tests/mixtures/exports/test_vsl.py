"""Rows in Model Zoo's VSL layout, as its reader takes them, against a slow reading of spans."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import crystalmix as cm
from crystalmix.mixtures.exports.row_blocks import DOCUMENTS, Block
from crystalmix.mixtures.exports.vsl import features
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.prep.rows.spans import path_of
from crystalmix.train.loader.batches import Share
from helpers import corpora

# ids, mask and labels of three rows, the spans of their documents, and what their features are
WORKED = """
41 42 43 44 45 46 47 48 | 21 22 23 24  2 11 12  0 | 31 0 0 0 0 0 0 0
 1  1  1  1  1  1  1  1 |  1  1  1  1  1  1  1  0 |  1 0 0 0 0 0 0 0
42 43 44 45 46 47 48  2 | 22 23 24  2 11 12  2  0 |  2 0 0 0 0 0 0 0
 7  6  5  4  3  2  1  0 |  4  3  2  1  0  1  0  0 |  0 0 0 0 0 0 0 0
 0  1  2  3  4  5  6  7 |  0  1  2  3  4  0  1  0 |  0 0 0 0 0 0 0 0
"""


def test_spans_give_the_features_of_model_zoo() -> None:
    """Packing invariant 8."""
    lines = [
        [list(map(int, r.split())) for r in line.split("|")] for line in WORKED.strip().splitlines()
    ]
    wanted = np.array(lines, np.int32).swapaxes(0, 1)  # (3, 5, 8)
    pieces: list[list[tuple[int, int]]] = [[(0, 8)], [(0, 5), (5, 7)], [(0, 1)]]
    entry: dict[str, Any] = {"source": "s", "document": 0, "offset": 0, "fim": 0}
    documents = [[{**entry, "start": a, "stop": b} for a, b in row] for row in pieces]

    class Masking:
        masked = (True,)

    class Refs:
        part = np.zeros(3, np.int64)

    block: Any = Block(
        Masking(), np.arange(3), wanted[:, :3], Refs(), pa.array(documents, DOCUMENTS)
    )  # pyright: ignore[reportArgumentType]
    assert np.array_equal(features(block), wanted)


def test_a_phase_is_exported_with_spans_and_positions_of_its_documents(tmp_path: Path) -> None:
    """Packing invariant 8."""
    corpora.write_corpus(tmp_path)
    rows = {"pack": "best_fit", "group_tokens": 700, "documents": "masked"}
    domains = {"python": {"fim": None}, "web": {"rows": {"documents": "open"}}}
    corpora.write_recipe(tmp_path, rows=rows, domains=domains)
    build = corpora.built(tmp_path)
    cm.export_rows(build, tmp_path / "rows", phase="prose", to="vsl", rows_per_file=20, workers=1)
    manifest = manifests.read(build / "phases/prose")
    share = Share(manifest, build)
    batches = [share.read(step) for step in range(manifest.steps)]
    files = sorted((tmp_path / "rows").glob("*.h5"))
    opened = [h5py.File(path) for path in files]
    data = np.concatenate([np.asarray(file["data"]) for file in opened])
    assert [int(file.attrs["n_examples"]) for file in opened] == [20, 20, 8]
    assert (data.shape, data.dtype) == ((48, 5, 64), np.int32)
    refs = manifest.rows(0, 48)
    for row in range(48):
        batch, slot = batches[row // 4], row % 4
        for channel, name in enumerate(("ids", "mask", "labels")):
            assert (data[row, channel] == getattr(batch, name)[slot]).all()
        path, number = build / manifest.paths[refs.shard[row]], int(refs.row[row])
        if (origin := path_of(path, "origin")).exists():
            line = pq.read_table(origin).to_pylist()[number]
            path, number = path.parent.parent / line["origin"], line["origin_row"]
        spans = [s for s in pq.read_table(path_of(path)).to_pylist() if s["row"] == number]
        used = max(s["stop"] for s in spans)
        if not manifest.masked[refs.part[row]]:
            spans = [{"start": 0, "stop": used}]
        for s in spans:
            for place in range(s["start"], s["stop"]):
                assert data[row, 3, place] == s["stop"] - 1 - place
                assert data[row, 4, place] == place - s["start"]
        assert not data[row, 3:, used:].any()
