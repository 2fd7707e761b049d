"""Token ids of other trainers become rows of ours: none lost, each with its document."""

import os
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import crystalmix as cm
from crystalmix.mixtures.modelzoo.token_files import SUFFIXES, TokenFile
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, UsageError
from helpers.corpora import crystalmix

MSL, BATCH = 16, 2
Documents = list[NDArray[np.uint16]]


def documents(seed: int = 0, count: int = 30) -> Documents:
    """Documents of 0 to 39 ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 500, rng.integers(0, 40)).astype(np.uint16) for _ in range(count)]


def write_megatron(prefix: Path, docs: Documents) -> None:
    """Write each document as one or two sequences, as Megatron's preprocessing of sentences."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    sequences = [half for doc in docs for half in np.array_split(doc, 2)]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype("<i8") * 2
    bounds = np.arange(0, len(sequences) + 1, 2, dtype="<i8")
    head = b"MMIDIDX\0\0" + np.array(1, "<u8").tobytes() + b"\x08"
    counts = np.array([len(sequences), len(bounds)], "<u8").tobytes()
    prefix.with_suffix(".idx").write_bytes(
        head + counts + lengths.tobytes() + starts.tobytes() + bounds.tobytes()
    )
    prefix.with_suffix(".bin").write_bytes(np.concatenate(docs).astype("<u2").tobytes())


def write_parquet(folder: Path, docs: Documents) -> None:
    """Write two files, of ten documents and of the rest."""
    folder.mkdir(parents=True)
    for number, part in enumerate((docs[:10], docs[10:])):
        lists = pa.array([doc.tolist() for doc in part], pa.list_(pa.int32()))
        table = pa.table({"name": pa.array(["x"] * len(part)), "input_ids": lists})
        pq.write_table(table, folder / f"{number}.parquet")


def write_arrow(folder: Path, docs: Documents) -> None:
    made: Any = datasets.Dataset.from_dict({"tokens": [doc.tolist() for doc in docs]})
    made.save_to_disk(str(folder))


def check(build: cm.Build, name: str, docs: Documents) -> None:
    """Compare the rows of a dataset, and the spans of its documents, with the ids."""
    stream = np.concatenate(docs).astype(np.int64)
    count = -(-len(stream) // MSL)
    rows: list[Any] = []
    for path in sorted((build.path / "domains" / name / "imported").glob("*.h5")):
        with h5py.File(path) as file:
            data: Any = file["data"]
            rows.append(data[:])
    ids, mask, labels = (np.concatenate(rows)[:, channel].reshape(-1) for channel in range(3))
    assert len(ids) == count * MSL
    assert np.array_equal(ids[: len(stream)], stream)
    assert np.array_equal(labels[: len(stream) - 1], stream[1:])
    assert np.array_equal(mask, np.arange(len(ids)) < len(stream) - 1)
    pieces = build.sql(
        'SELECT document, "offset", start, stop, "row" FROM spans '
        f"WHERE source = '{name}' ORDER BY shard, \"row\", start"
    )
    held: dict[int, list[int]] = {}
    for document, offset, start, stop, row in zip(
        *(pieces[n] for n in ("document", "offset", "start", "stop", "row")), strict=True
    ):
        assert offset == len(held.setdefault(document, []))
        held[document] += ids[row * MSL + start : row * MSL + stop].tolist()
    assert held == {i: doc.tolist() for i, doc in enumerate(docs) if len(doc)}


@pytest.mark.parametrize("kind", ["megatron", "parquet", "arrow"])
def test_ids_become_rows_with_their_documents(kind: Any, tmp_path: Path) -> None:
    sets = {"web": documents(1), "code-python": documents(2)}
    for name, docs in sets.items():
        place = tmp_path / "tokens" / name.replace("-", "/")
        {"megatron": write_megatron, "parquet": write_parquet, "arrow": write_arrow}[kind](
            place, docs
        )
    build = cm.import_tokens(
        tmp_path / "tokens", tmp_path / "build", kind=kind, msl=MSL, batch=BATCH
    )
    for name, docs in sets.items():
        check(build, name, docs)
    assert cm.verify(build.path).faults == ()
    manifest = build.phases["all"].manifest
    rows = {name: -(-sum(map(len, docs)) // MSL) for name, docs in sets.items()}
    assert {part.name: part.available for part in manifest.parts} == rows
    assert manifest.steps == sum(rows.values()) // BATCH
    assert manifest.tokenizer.vocab == 1 + int(max(np.concatenate(d).max() for d in sets.values()))
    assert sum(1 for _ in build.phases["all"].batches()) == manifest.steps


def test_the_import_is_the_same_for_any_number_of_workers_and_not_done_twice(
    tmp_path: Path,
) -> None:
    write_megatron(tmp_path / "tokens" / "web", documents(1))
    digests = []
    for workers, out in ((1, "one"), (2, "two"), (1, "one")):
        words = ("--tokens", "megatron", "--msl", MSL, "--batch", BATCH, "--workers", workers)
        result = crystalmix("import", tmp_path / "tokens", "--out", tmp_path / out, *words)
        assert result.exit_code == 0, result.stderr
        digests.append(cm.open(tmp_path / out).phases["all"].manifest.digest)
    assert len(set(digests)) == 1


def test_our_own_export_comes_back(tmp_path: Path) -> None:
    write_megatron(tmp_path / "tokens" / "web", documents(1))
    build = cm.import_tokens(tmp_path / "tokens", tmp_path / "a", kind="megatron", msl=MSL, batch=1)
    cm.export_rows(build, tmp_path / "rows", phase="all", to="megatron")
    again = cm.import_tokens(
        tmp_path / "rows", tmp_path / "b", kind="megatron", msl=MSL + 1, batch=1
    )
    assert again.phases["all"].manifest.steps == build.phases["all"].manifest.steps


@pytest.mark.parametrize("kind", ["megatron", "parquet", "arrow"])
def test_a_fifo_is_refused_at_once(kind: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{SUFFIXES[kind]}")
    path = TokenFile(tmp_path / f"a{SUFFIXES[kind]}", kind)
    with pytest.raises(InputError, match="is no regular file; get it again"):
        path.read()


def test_what_is_no_token_file_is_refused(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    write_megatron(tokens / "web", documents(1))
    with pytest.raises(InputError, match="holds no .parquet file"):
        cm.import_tokens(tokens, tmp_path / "out", kind="parquet")
    with pytest.raises(RefusalError, match=r"holds the id \d+, the vocabulary has 10; give"):
        cm.import_tokens(tokens, tmp_path / "out", kind="megatron", vocab=10)
    whole = (tokens / "web.bin").read_bytes()
    (tokens / "web.bin").write_bytes(whole[:-2])
    with pytest.raises(DamageError, match=r"web.idx: can't be read \(web.bin has not the"):
        cm.import_tokens(tokens, tmp_path / "out", kind="megatron")
    (tokens / "web.idx").write_bytes(b"MMIDIDX")
    with pytest.raises(DamageError, match=r"web.idx: can't be read"):
        cm.import_tokens(tokens, tmp_path / "out", kind="megatron")
    write_parquet(tokens / "tables", documents(1))
    with pytest.raises(InputError, match=r"no column text \(it has name, input_ids\); give"):
        cm.import_tokens(tokens, tmp_path / "out", kind="parquet", column="text")


def test_the_command_takes_either_params_or_tokens(tmp_path: Path) -> None:
    result = crystalmix("import", tmp_path, "--out", tmp_path / "out")
    assert (result.exit_code, "name one file a phase, or --tokens" in result.stderr) == (2, True)
    result = crystalmix("import", tmp_path, "--out", tmp_path / "out", "--msl", 4)
    assert (result.exit_code, "--msl: needs --tokens" in result.stderr) == (2, True)
    words = ("--tokens", "megatron", "--subset", "1.9.1")
    result = crystalmix("import", tmp_path, "--out", tmp_path / "out", *words)
    assert (result.exit_code, "--subset: not of tokens" in result.stderr) == (2, True)
    with pytest.raises(UsageError, match="is no folder"):
        cm.import_tokens(__file__, tmp_path / "out", kind="arrow")
