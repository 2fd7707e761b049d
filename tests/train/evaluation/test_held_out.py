"""Held-out rows: the first of a phase's order, FIM's labels apart, texts of training refused."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.manifest.build_folder import TOKENIZER
from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.evaluation import held_out as heldout
from crystalmix.train.evaluation.held_out import KINDS, HeldOut
from helpers import watched
from helpers.runs import copied_build, small_build
from helpers.runs import manifest as small_manifest

LTR, FIM, UNKNOWN = range(len(KINDS))


def held(rows: int | None = None, phase: str = "held", build: Path | None = None) -> HeldOut:
    return heldout.hold_out(watched.split_build() if build is None else build, phase, rows)


def row_ids(one: HeldOut) -> Any:
    paths = [one.root / path for path in one.manifest.paths]
    return scatter.gather(paths, one.refs.shard, one.refs.row)


def test_the_rows_are_the_first_of_the_order_and_no_others() -> None:
    whole, few = held(), held(5)
    manifest = watched.manifest("held")
    assert len(whole.refs.row) == manifest.steps * manifest.batch == 12
    for name in ("part", "shard", "row", "epoch"):
        assert getattr(few.refs, name).tolist() == getattr(whole.refs, name)[:5].tolist()
        assert getattr(few.refs, name).tolist() == getattr(manifest.rows(0, 5), name).tolist()
    assert np.array_equal(few.kind, whole.kind[:5])


def test_labels_of_permuted_documents_are_fims_and_no_others() -> None:
    """Held against the ids alone: a permuted document begins with the prefix's sentinel."""
    for one in (held(), held(phase="mixed"), held(phase="code", build=small_build())):
        special = one.manifest.tokenizer.special
        seen = {LTR: 0, FIM: 0}
        for ids, kind in zip(row_ids(one)[:, 0], one.kind, strict=True):
            form = None  # of a document that began in another row nothing is known
            for place, (number, before) in enumerate(zip(ids, [0, *ids], strict=False)):
                if number == special["bos"]:
                    form = LTR
                if number == special["fim_prefix"]:
                    form = FIM
                    if before == special["bos"] and place > 1:
                        assert kind[place - 2] == FIM  # BOS is the first token of its document
                if form == FIM and place and number != special["pad"]:
                    assert kind[place - 1] == FIM
                    seen[FIM] += 1
                following = ids[place + 1] if place + 1 < len(ids) else None
                if form == LTR and place and number != special["bos"] and following is not None:
                    assert kind[place - 1] == LTR
                    seen[LTR] += 1
        assert seen[LTR] > 50
        assert seen[FIM] > 50


def test_prose_has_no_fim_labels_and_code_has_both() -> None:
    one = held()
    for number, part in enumerate(one.manifest.parts):
        kinds = set(np.unique(one.kind[one.refs.part == number]).tolist())
        assert FIM not in kinds if part.fim is None else {LTR, FIM} <= kinds


def test_pieces_of_shuffled_rows_are_those_of_the_rows_they_came_from() -> None:
    shard = small_build() / small_manifest("mixed").parts[1].shards[0].path
    assert not spans.path_of(shard).exists()
    origin = pq.read_table(spans.path_of(shard, "origin")).to_pylist()
    rows = np.array([5, 0, 5, 3])
    table = spans.of_rows(shard, rows)
    assert table is not None
    for row in (0, 3, 5):
        came = origin[row]
        told = pq.read_table(spans.path_of(shard.parents[1] / came["origin"])).to_pylist()
        wanted = [{**e, "row": row} for e in told if e["row"] == came["origin_row"]]
        assert [e for e in table.to_pylist() if e["row"] == row] == wanted
    assert set(table["row"].to_pylist()) == {0, 3, 5}


def test_rows_without_spans_are_of_no_known_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = copied_build(tmp_path / "build")
    for path in build.rglob("*.spans.parquet"):
        path.unlink()
    one = held(build=build, phase="mixed")
    assert one.documents is None
    assert set(np.unique(one.kind).tolist()) == {UNKNOWN}
    with caplog.at_level(logging.WARNING, "crystalmix"):
        heldout.check_apart(one, build, [small_manifest("prose")])
    assert "has no spans" in caplog.messages[0]


def test_a_phase_that_is_not_there_and_too_many_rows_are_told() -> None:
    with pytest.raises(UsageError, match=r"evaluation.phase: .* no phase 'hold' \(there are held,"):
        held(phase="hold")
    with pytest.raises(RefusalError, match=r"evaluation.rows: phase held has 12 rows, got 13"):
        held(13)


def test_only_a_phase_of_held_out_documents_alone_is_held_out() -> None:
    build = watched.split_build()
    mixed, own = watched.manifest("mixed"), watched.manifest("held")
    assert heldout.is_held_out(build, own)
    assert not heldout.is_held_out(build, mixed)
    assert not heldout.is_held_out(build, replace(own, parts=(*own.parts, *mixed.parts[:1])))
    assert not any(
        heldout.is_held_out(small_build(), small_manifest(p)) for p in ("prose", "mixed", "code")
    )


def test_held_out_texts_pass_beside_those_that_are_split_from_them() -> None:
    heldout.check_apart(held(), watched.split_build(), [watched.manifest("mixed")])


def test_a_text_that_is_trained_on_is_refused_by_name_whatever_source_it_is_of() -> None:
    # `code` and `python` read the same files into two sources: the texts are equal, not the names
    build = small_build()
    code = next(p for p in small_manifest("code").parts if p.name == "code-0-0.5")
    assert code.domain == "code"
    one = held(phase="code", build=build)
    only_python = [n for n, p in enumerate(one.manifest.parts) if p.domain == "python"]
    places = np.flatnonzero(np.isin(one.refs.part, only_python))
    documents = {
        (source, number)
        for shard in np.unique(one.refs.shard[places])
        for table in [spans.of_rows(build / one.manifest.paths[shard], one.refs.row[places])]
        if table is not None
        for source, number in zip(
            table["source"].to_pylist(), table["document"].to_pylist(), strict=True
        )
    }
    assert {source for source, _ in documents} == {"python"}
    python = replace(one, documents=frozenset(documents))
    with pytest.raises(RefusalError) as told:
        heldout.check_apart(python, build, [small_manifest("prose"), small_manifest("mixed")])
    line = str(told.value)
    assert "texts of code are trained on too: " in line
    assert "src/python/" in line
    assert "(part code of phase mixed); hold them out with `valid` and `split`" in line
    heldout.check_apart(python, build, [small_manifest("prose")])


def test_a_split_is_believed_for_texts_of_its_other_side_alone() -> None:
    """Held-out rows of documents that training's side has are found, though domains are split."""
    build = watched.split_build()
    with pytest.raises(RefusalError, match=r"texts of mixed are trained on too"):
        heldout.check_apart(held(phase="mixed"), build, [watched.manifest("mixed")])


def test_documents_begin_with_bos_where_the_recipe_packed_them_so() -> None:
    build = small_build()
    prose = small_manifest("prose")
    assert heldout.begins_with_bos(build, prose)
    nobody = replace(prose, parts=(replace(prose.parts[0], domain="nobody"),))
    with pytest.raises(RefusalError, match="is missing, and only its receipt says"):
        heldout.begins_with_bos(build, nobody)
    tokenizer = load(TokenizerSettings(str(build / TOKENIZER)))
    assert tokenizer.special["bos"] is not None
