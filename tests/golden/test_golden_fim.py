"""Row-level FIM in the original's dialect gives the original's rows, bit for bit, by settings.

The 52 arrays of golden/pipeline/fim, the edge cases too: ids are decoded as the tokenizers of the
time did it, which today's do otherwise next to added ids (the last test). Dataset, chunks and
`n_examples` are those of stage 2; the original's stage 3 wrote neither (auto-chunks, no attribute).
"""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn, seed_of
from crystalmix.prep.crystalcoder.original_row_text import decode
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.fim.row_spans import Packed
from crystalmix.prep.rows import shards, spans
from helpers.materials import shared
from helpers.originals import library, tokenizer

pytestmark = pytest.mark.golden
LANGUAGES = ("python", "css", "html", "javascript")  # the order that stage 3 numbers files in
STAGE_2 = [
    ("stage2_procs1", "star_split_p1_fpr20", 1),
    ("stage2_procs2", "star_split_p1_fpr20", 2),
    ("edge_stage2_procs2", "edge_split", 2),
]
ways = pytest.mark.parametrize("local", [True, False], ids=["local", "plain"])


def packed(name: str, folder: Path) -> list[Path]:
    """Copy the original's packed files and write the spans that they lack: one for each row."""
    found = sorted(shared("golden", "pipeline", "packed", name).glob("*.h5"))
    paths = [folder / path.name for path in found]
    for source, path in zip(found, paths, strict=True):
        rows = shards.read(source)
        shards.write(path, len(rows), [rows])
        count, msl = len(rows), rows.shape[2]
        columns = {
            "row": range(count),
            "start": [0] * count,
            "stop": [msl] * count,
            "source": pa.array(["star"] * count).dictionary_encode(),
            "document": [0] * count,
            "offset": range(0, count * msl, msl),
            "fim": [0] * count,
            "cut1": [-1] * count,
            "cut2": [-1] * count,
        }
        table = pa.table([pa.array(columns[f.name]).cast(f.type) for f in spans.SPANS], spans.SPANS)
        spans.write(spans.path_of(path), table)
    return paths


def check(given: Path, settings: FimSettings, turn: Turn, theirs: Path, local: bool) -> None:
    """Permute one file and compare it with the original's."""
    out = given.with_name(f"{turn.epoch}-{given.name}")
    _, account = LegacyFim(tokenizer(), settings, turn, local=local).apply(Packed.of(given), out)
    with h5py.File(out) as ours, h5py.File(theirs) as golden:
        assert np.array_equal(ours["data"][:], golden["data"][:])
        assert ours["data"].dtype == golden["data"].dtype
        if "n_examples" in golden.attrs:  # stage 2
            assert ours.attrs["n_examples"] == golden.attrs["n_examples"]
            assert ours["data"].chunks == golden["data"].chunks
    tokens_in, tokens_out = (spans.tokens(spans.path_of(path)) for path in (given, out))
    grown = account.sentinels + account.recut - account.overflow - account.ends
    assert tokens_in + grown == tokens_out


@ways
@pytest.mark.parametrize(("name", "source", "processes"), STAGE_2)
def test_stage_2_is_the_originals(
    tmp_path: Path, name: str, source: str, processes: int, local: bool
) -> None:
    settings = FimSettings(0.9, 0.5, "row", dialect="cerebras", processes=processes)
    files = packed(source, tmp_path)
    for number, path in enumerate(files):
        seed = seed_of(settings, number, len(files))
        for epoch in range(2):
            theirs = shared("golden", "pipeline", "fim", name, f"epoch_{epoch}", path.name)
            check(path, settings, Turn(seed, 2, epoch), theirs, local)


@ways
@pytest.mark.parametrize("language", LANGUAGES)
def test_stage_3_is_the_originals(tmp_path: Path, language: str, local: bool) -> None:
    first = LANGUAGES.index(language)
    settings = FimSettings(0.3, 0.5, "row", dialect="cerebras", first_seed=first)
    [path] = packed(f"stage3_{language}", tmp_path)
    for epoch in range(3):
        folder = f"{language}_{epoch}"
        theirs = shared("golden", "pipeline", "fim", "stage3_procs2", folder, path.name)
        check(path, settings, Turn(seed_of(settings, 0, 1), 3, epoch), theirs, local)


def test_every_array_of_the_original_is_compared() -> None:
    arrays = len(list(shared("golden", "pipeline", "fim").glob("*/*/*.h5")))
    assert arrays == 2 * (9 + 9 + 2) + 3 * len(LANGUAGES)


def test_todays_decoding_differs_only_where_added_ids_stand(tmp_path: Path) -> None:
    model = library()
    added, differ = set(tokenizer().controls.tolist()), 0
    for path in packed("edge_split", tmp_path):
        for row in shards.read(path)[:, 0].tolist():
            text = decode(tokenizer(), row)
            if text != model.decode(row, skip_special_tokens=False):
                differ += 1
                assert added & set(row)
            inner = [i for i in row if i not in added]
            assert decode(tokenizer(), inner) == model.decode(inner)
    assert differ > 0
