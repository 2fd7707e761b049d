"""Exports of every kind of rows hold what the trainer is fed, token by token; or are refused."""

from pathlib import Path

import numpy as np
import pytest

import crystalmix as cm
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RefusalError
from helpers.corpora import crystalmix
from helpers.masked import masked_build
from helpers.row_kinds import KINDS, columns, exported, fed, phase_of, whole


@pytest.mark.parametrize("kind", list(KINDS))
def test_parquet_holds_what_is_fed(kind: str, tmp_path: Path) -> None:
    table = columns(exported(kind, "parquet", tmp_path / "rows"))
    for name, ours in (("input_ids", "ids"), ("labels", "labels"), ("loss_mask", "mask")):
        values = np.array(table[name].to_pylist())
        assert np.array_equal(
            values, whole(kind, ours) != 0 if ours == "mask" else whole(kind, ours)
        )
    places = [(b.step, slot) for b in fed(kind) for slot in b.slots.tolist()]
    assert list(zip(table["step"].to_pylist(), table["slot"].to_pylist(), strict=True)) == places


@pytest.mark.parametrize("to", ["megatron", "bin"])
def test_talks_whose_labels_are_not_the_next_ids_are_refused_as_tokens(
    to: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusalError, match=r"labels that are not .* export it to parquet") as told:
        exported("chat", to, tmp_path / "rows")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("to", ["megatron", "bin"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chat"])
def test_tokens_and_masks_are_those_that_are_fed(kind: str, to: str, tmp_path: Path) -> None:
    folder, msl = exported(kind, to, tmp_path / "rows"), phase_of(kind).manifest.msl
    files = sorted(folder.glob("*.bin"))
    assert len(files) > 1
    rows = np.concatenate([np.fromfile(f, np.uint16).reshape(-1, msl + 1) for f in files])
    bits = [np.fromfile(f.with_suffix(".mask"), np.uint8) for f in files]
    mask = np.unpackbits(np.concatenate(bits).reshape(len(rows), -1), axis=1)[:, :msl]
    assert np.array_equal(rows[:, :-1], whole(kind, "ids"))
    assert np.array_equal(mask, whole(kind, "mask"))
    counted = mask == 1
    assert np.array_equal(rows[:, 1:][counted], whole(kind, "labels")[counted])
    if to == "megatron":
        index = sorted(folder.glob("*.idx"))[0].read_bytes()
        assert index[:9] == b"MMIDIDX\0\0"
        assert int.from_bytes(index[18:26], "little") == 5


def test_masked_rows_say_so_and_hold_the_pieces_that_attention_stays_in(tmp_path: Path) -> None:
    kind = "best fit, masked"
    table = columns(exported(kind, "megatron", tmp_path / "rows"))
    manifest = phase_of(kind).manifest
    masking = {p.name for p, on in zip(manifest.parts, manifest.masked, strict=True) if on}
    assert 0 < len(masking) < len(manifest.parts)
    assert receipts.read(tmp_path / "rows").account["masked"] == sorted(
        masking, key=[p.name for p in manifest.parts].index
    )
    lengths = [pieces for batch in fed(kind) for pieces in batch.pieces or ()]
    for part, documents, pieces in zip(
        table["part"].to_pylist(), table["documents"].to_pylist(), lengths, strict=True
    ):
        if part not in masking:
            continue
        starts = [0, *np.cumsum(pieces)[:-1].tolist()]
        assert starts[: len(documents)] == [piece["start"] for piece in documents]


def test_what_rows_alone_can_not_hold_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    for to in ("megatron", "bin", "mds", "parquet", "arrow"):
        with pytest.raises(RefusalError, match="masks attention between documents") as told:
            cm.export_rows(
                masked_build(),
                tmp_path / to,
                phase="prose",
                to=to,
                documents=False,  # pyright: ignore
            )
        assert "\n" not in str(told.value)
        assert not (tmp_path / to).exists()
    words = ["export-rows", masked_build(), "--phase", "prose", "--workers", "1"]
    shown = crystalmix(*words, "--to", "parquet", "--out", tmp_path / "rows")
    assert "is masked between documents: the reader must take" in shown.stderr
    vsl = crystalmix(*words, "--to", "vsl", "--no-documents", "--out", tmp_path / "vsl")
    assert vsl.exit_code == 0
    assert "masked between" not in vsl.stderr
