"""Packing reproduces the rows of the original code, bit for bit, by ordinary settings.

Documents are tokenised whole, as Model Zoo does with `split_text_to_tokenize` off. With it on, as
CrystalCoder had it, texts are tokenised in pieces of 2,000 characters: `in_pieces` below does so,
to hold the packer against more of the original's rows; the toolkit itself has no such setting.

The original matches `<s>` and the like inside texts; we never do. In the StarCoder and SlimPajama
inputs that changes nothing, in the edge cases it is the only difference.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ftfy
import h5py
import numpy as np
import pytest
import tokenizers
from materials import llama, shared

from mixtures import recipe as recipes
from mixtures.build import build
from prep import blocks, documents, numbering, pack, shards, sources, spans
from prep.blocks import Block, Encoded, Stream
from prep.pack import PackSettings
from prep.shards import Rows
from prep.sources import Source
from prep.tokens import Tokenizer

pytestmark = pytest.mark.golden
LANGUAGES = ("css", "html", "javascript", "python")  # the order of lists/star.txt
PARQUET = tuple(f"input/starcoderdata/{language}" for language in LANGUAGES)
JSONL = tuple(f"jsonl/{language}" for language in LANGUAGES)
Encode = Callable[[Tokenizer, str], list[int]]

RECIPE = """
name: golden
seed: 1
tokenizer: {{path: {tokenizer}}}
rows: {{msl: 2048, bos: true, eos: true, tail: drop, rows_per_shard: 50000}}
sources:
  star: {{files: [{files}], text: content, ftfy: true}}
domains:
  star: {{sources: [star], shuffle: false}}
phases:
  only: {{steps: 1, batch: 166, parts: [{{domain: star, weight: 1}}]}}
"""


def in_one(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()


def in_pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise 2,000 characters and the rest of the word at a time, each with a dummy space."""
    ids: list[int] = []
    while text:
        place = text.find(" ", 2000)
        piece, text = (text, "") if place < 0 else (text[:place], text[place:])
        ids += tokenizer.encode(piece).tolist()
    return ids


def golden(name: str) -> list[Path]:
    """Return the original's shards in order."""
    found = shared("golden", "pipeline", "packed", name).glob("*.h5")
    return sorted(found, key=lambda path: int(path.stem.split("_")[1]))


def repaired(source: Source, folder: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of every document, by way of scan, merge and texts."""
    root = shared("golden", "pipeline")
    names = sources.blocks(source, root)
    parts = [folder / f"block-{i}.parquet" for i in range(len(names))]
    pairs = list(zip(names, parts, strict=True))
    told = [documents.scan(source, root, name, None, part) for name, part in pairs]
    merged = folder / "documents.parquet"
    numbering.merge(source, parts, merged)
    first = 0
    for name, account in zip(names, told, strict=True):
        last = first + account["documents"]
        for document in documents.texts(source, root, name, merged, (first, last)):
            text = document.text
            yield document.number, ftfy.fix_text(text, normalization="NFC") if source.ftfy else text
        first = last


def packed(folder: Path, source: Source, settings: PackSettings, encode: Encode) -> list[Path]:
    """Pack a source by the functions of prep; return the shards."""
    tokenizer = llama()
    controls = pack.Controls(tokenizer.id_of("bos"), tokenizer.id_of("eos"), tokenizer.pad)
    encoded = (
        pack.frame(Encoded(number, np.array(encode(tokenizer, text)), 0), controls)
        for number, text in repaired(source, folder)
    )
    told = blocks.write(folder / "block.ids", encoded, vocab=tokenizer.vocab)
    stream = Stream((Block(folder / "block.ids", source.name, told["tokens"], told["wide"]),))
    rows = pack.rows_of(stream.tokens, settings)
    for number, bounds in enumerate(pack.shards_of(rows, settings)):
        pack.pack(stream, bounds, settings, tokenizer.pad, folder / "rows" / shards.name(number))
    return shards.folder(folder / "rows")


def plain(path: Path) -> tuple[Rows, tuple[int, ...], int]:
    """Return the array, its chunks and the number of rows told, as any h5py reads them."""
    with h5py.File(path, "r") as file:
        dataset: Any = file["data"]
        return dataset[:], dataset.chunks, int(file.attrs["n_examples"])


def same(ours: list[Path], theirs: list[Path]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        (data, chunks, rows), (golden_data, golden_chunks, golden_rows) = plain(one), plain(other)
        assert data.dtype == golden_data.dtype == np.int32
        assert np.array_equal(data, golden_data)
        assert (chunks, rows) == (golden_chunks, golden_rows)


@pytest.mark.parametrize(("files", "text"), [(PARQUET, "content"), (JSONL, "text")])
def test_whole_documents_give_the_rows_of_the_original(
    tmp_path: Path, files: tuple[str, ...], text: str
) -> None:
    source = Source("star", files=files, text=text, ftfy=True)
    made = packed(tmp_path, source, PackSettings(tail="drop", rows_per_shard=50_000), in_one)
    same(made, golden("star_nosplit_p1"))
    data, chunks, rows = plain(made[0])
    assert (data.shape, chunks, rows) == ((166, 3, 2048), (1, 3, 2048), 166)


def test_a_whole_recipe_gives_the_rows_of_the_original(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    tokenizer = shared("tokenizer", "llama-32000.json")
    path.write_text(RECIPE.format(tokenizer=tokenizer, files=", ".join(PARQUET)))
    [manifest] = build(
        recipes.load(path), shared("golden", "pipeline"), tmp_path / "out", workers=2
    )
    folder = tmp_path / "out" / "domains" / "star" / "epoch-0"
    same(shards.folder(folder), golden("star_nosplit_p1"))
    [part] = manifest.parts
    assert part.available == part.rows == 166
    assert [shard.rows for shard in part.shards] == [166]


SPLIT: dict[str, tuple[tuple[str, ...], dict[str, Any], bool]] = {
    "star_split_p1": (JSONL, {}, True),
    "star_split_p1_fpr20": (JSONL, {"rows_per_shard": 20}, True),
    "star_msl512_p1": (JSONL, {"msl": 512}, True),
    "star_noftfy_p1": (JSONL, {}, False),
    "slim_split_p1": (("input/slimpajama",), {}, True),
    **{f"stage3_{language}": ((f"jsonl/{language}",), {}, True) for language in LANGUAGES},
}


@pytest.mark.parametrize("name", SPLIT)
def test_texts_in_pieces_give_the_rows_of_the_original(tmp_path: Path, name: str) -> None:
    files, fields, repair = SPLIT[name]
    settings = PackSettings(**{"tail": "drop", "rows_per_shard": 50_000, **fields})
    same(packed(tmp_path, Source("s", files=files, ftfy=repair), settings, in_pieces), golden(name))


def test_a_process_of_the_original_is_a_slice_of_the_files_and_drops_its_tail(
    tmp_path: Path,
) -> None:
    settings = PackSettings(tail="drop", rows_per_shard=50_000)
    files = [f"jsonl/{language}" for language in LANGUAGES[:3]]
    slices = (files, ["jsonl/python"])  # five files, two processes: three and two
    for number, part in enumerate(slices):
        source = Source("s", files=tuple(part), ftfy=True)
        [made] = packed(tmp_path / str(number), source, settings, in_pieces)
        theirs = shared("golden", "pipeline", "packed", "star_split_p2", f"examples_0_{number}.h5")
        same([made], [theirs])


def test_the_edge_cases_differ_only_where_a_text_spells_a_control(tmp_path: Path) -> None:
    source = Source("edge", files=("input/edge/edge.jsonl",), ftfy=True, blank="keep")
    model = tokenizers.Tokenizer.from_file(str(shared("tokenizer", "llama-32000.json")))
    spelt = 0
    matched: list[int] = []
    for _, text in repaired(source, tmp_path):
        ids = model.encode(text, add_special_tokens=False).ids  # as the original: matching
        if ids != in_one(llama(), text):
            assert any(name in text for name in ("<s>", "</s>", "<unk>"))
            spelt += 1
        matched += [1, *ids, 2]
    assert spelt > 0
    rows = (len(matched) - 1) // 2048
    theirs = np.concatenate([plain(path)[0] for path in golden("edge_nosplit")])
    assert np.array_equal(
        pack.cut(np.array(matched[: rows * 2048 + 1], np.int32), rows, 2048, 2), theirs
    )
    made = packed(tmp_path, source, PackSettings(tail="drop", rows_per_shard=10), in_one)
    assert [plain(path)[2] for path in made] == [plain(path)[2] for path in golden("edge_nosplit")]


def test_what_another_code_packed_is_read_and_its_rows_told(tmp_path: Path) -> None:
    [path] = golden("star_nosplit_p1")
    assert shards.shape(path) == (166, 2048)
    assert np.array_equal(shards.read(path), plain(path)[0])
    source = Source("star", files=PARQUET, text="content", ftfy=True)
    [ours] = packed(tmp_path, source, PackSettings(tail="drop", rows_per_shard=50_000), in_one)
    assert shards.content_digest(ours) == shards.content_digest(path)
    assert spans.tokens(spans.path_of(ours)) == 166 * 2048
