"""Model Zoo's own code on our rows of fitted documents: its reader, its mask, its packing.

MODEL_ZOO names a checkout of https://github.com/Cerebras/modelzoo (tried: Release_2.10.0, f1fd1e0);
no test fetches one. Its reader is imported as it is; of other files, which need cstorch, the
functions meant are compiled from their source.
"""

import ast
import os
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crystalmix as cm
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.prep.packing import fitted_rows, pieces
from crystalmix.prep.packing.fitted import merged
from crystalmix.prep.rows import shards, spans, token_blocks
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.train.loader.batches import Share
from helpers.masked import masked_build

if "MODEL_ZOO" not in os.environ:
    pytest.skip("MODEL_ZOO names no checkout", allow_module_level=True)
ZOO = Path(os.environ["MODEL_ZOO"]) / "src/cerebras/modelzoo"
PREPARING = "data_preparation/data_preprocessing"
FEATURES = ("input_ids", "attention_mask", "labels", "attention_span", "position_ids")
EOS, PAD = 2, 0


def reader() -> type[Any]:
    """Import Model Zoo's reader of packed samples."""
    file = ZOO / "data/common/h5_map_dataset/readers.py"
    spec = spec_from_file_location("zoo_readers", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.H5Reader


@cache
def functions(file: str, *names: str) -> list[Callable[..., Any]]:
    """Compile functions, or methods as functions of `self`, from a file that can't be imported."""
    tree = ast.parse((ZOO / file).read_text("utf-8"))
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    body: list[ast.stmt] = [
        ast.ImportFrom("__future__", [ast.alias("annotations")], 0),
        *(found[name] for name in names),
    ]
    space: dict[str, Any] = {"np": np, "torch": torch}
    exec(compile(ast.fix_missing_locations(ast.Module(body, [])), file, "exec"), space)
    return [space[name] for name in names]


@pytest.mark.parametrize("msl", [24, 600])
def test_its_reader_takes_shards_as_they_are(tmp_path: Path, msl: int) -> None:
    """Rows below 512 tokens share chunks, longer ones have one each."""
    rows = np.random.default_rng(msl).integers(0, 60_000, (50, 3, msl), np.int32)
    for number, some in enumerate(np.split(rows, [21, 42])):
        shards.write(tmp_path / shards.name(number), len(some), [some])
    read = reader()(str(tmp_path))
    assert len(read) == len(rows)
    assert all(np.array_equal(read[i], rows[i]) for i in range(len(rows)))


def test_its_reader_takes_every_row_and_its_mask_parts_the_documents(tmp_path: Path) -> None:
    """Packing invariant 8."""
    build = masked_build()
    cm.export_rows(build, tmp_path / "rows", phase="prose", to="vsl", rows_per_file=20, workers=1)
    read = reader()(str(tmp_path / "rows"), use_vsl=True)
    manifest = manifests.read(build / "phases/prose")
    share = Share(manifest, build)
    assert len(read) == manifest.steps * manifest.batch
    _, masking = functions(
        "common/utils/model/transformer_utils.py",
        "replace_with_zero_and_neg_inf",
        "create_vsl_mask",
    )
    for step in range(manifest.steps):
        batch = share.read(step)
        rows = [read[step * manifest.batch + slot] for slot in range(manifest.batch)]
        sample = dict(zip(FEATURES, np.stack(rows, axis=1), strict=True))
        for name, ours in (("input_ids", "ids"), ("attention_mask", "mask"), ("labels", "labels")):
            assert np.array_equal(sample[name], getattr(batch, ours))
        seen = masking(torch.from_numpy(sample["attention_span"]), dtype=torch.float32)[:, 0] == 0
        piece, place = torch.from_numpy(batch.documents), torch.arange(manifest.msl)
        wanted = (piece[:, :, None] == piece[:, None, :]) & (place[:, None] >= place)
        used = torch.from_numpy(sample["attention_span"] + sample["position_ids"]) > 0
        assert torch.equal(seen[used], wanted[used])  # padding sees itself alone there
        held = used.numpy()
        assert np.array_equal(sample["position_ids"][held], batch.positions[held])


def packed_by_model_zoo(documents: list[list[int]], msl: int) -> list[np.ndarray]:
    """Return the rows of documents of ids without EOS, by Model Zoo's own methods."""
    chop, add_eos = functions(
        f"{PREPARING}/pretraining_token_generator.py", "chop_doc_into_msl", "_add_eos_to_doc"
    )
    grouped, features = functions(
        f"{PREPARING}/vsl_pretraining_token_generator.py",
        "append_within_max_length",
        "create_features_auto_lm_vsl",
    )
    zoo = SimpleNamespace(
        max_seq_length=msl, eos_id=EOS, pad_id=PAD, pack_sequences=False, prefix_doc=None,
        inverted_mask=False, input_ids_dtype="int32", input_mask_dtype="int32",
        position_ids_dtype="int32",
    )  # fmt: skip
    samples: list[np.ndarray] = []
    for ids in documents:
        region = {"region_modality": "text", "loss_weight": 1, "attention_mask": 1}
        data = {
            "tokenized_data": {"input_ids": ids},
            "tokenized_semantic_regions": [{**region, "indices": (0, len(ids))}],
        }
        cut = chop(zoo, data)
        add_eos(zoo, cut[-1])
        samples += [np.array([doc["input_ids"], doc["loss_mask"], doc["input_ids"]]) for doc in cut]
    return [features(zoo, group) for group in grouped(zoo, {"data": [samples]})]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    msl=st.integers(2, 12),
)
def test_next_fit_gives_its_rows(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], msl: int
) -> None:
    """Packing invariant 8."""
    folder, number = tmp_path_factory.mktemp("rows"), 10
    documents: list[list[int]] = []
    for length in lengths:
        documents.append(list(range(number, number + length)))
        number += length
    chosen = PackSettings(msl=msl, pack="next_fit", rows_per_shard=1_000)
    encoded = [Encoded(i, np.array([*ids, EOS], np.int64), 0) for i, ids in enumerate(documents)]
    counts = token_blocks.write(folder / "block.ids", encoded, vocab=60_000)
    stream = Stream((Block(folder / "block.ids", "zoo", counts.tokens, counts.wide),))
    bounds = pieces.groups(stream.lengths, 0, chosen)
    counted = fitted_rows.count(stream, bounds, chosen)
    fitted = merged(stream, bounds, chosen, [vars(counted)])
    groups, place = fitted.groups_of(0, fitted.rows)
    out = folder / shards.name(0)
    part = stream.part(groups[0], groups[-1] + 1)
    fitted_rows.pack(part, groups, place, Shape(chosen, PAD, ()), out)
    rows = shards.read(out)
    wanted = packed_by_model_zoo(documents, msl)
    assert np.array_equal(rows, np.stack(wanted)[:, :3])
    for line in spans.read(spans.path_of(out)).to_pylist():
        row, start, stop = line["row"], line["start"], line["stop"]
        size = stop - start
        assert wanted[row][4, start:stop].tolist() == list(range(size))
        assert wanted[row][3, start:stop].tolist() == list(range(size - 1, -1, -1))
