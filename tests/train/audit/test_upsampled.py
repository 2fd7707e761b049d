"""Audits of upsampled documents: each copy that a run consumed is an exposure."""

from collections import Counter
from pathlib import Path

import numpy as np
import xxhash
from tokenizers import Tokenizer

import crystalmix as cm
from crystalmix.train.trainer import session
from helpers import corpora, graded
from helpers.audited import ledger_rows, row_of
from helpers.runs import write_run


def consumed(build: Path, run: Path) -> Counter[str]:
    """Count the texts in the rows that a run recorded, by their ids alone."""
    tokenizer = Tokenizer.from_file(str(build / "tokenizer.json"))
    begin, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    found: Counter[str] = Counter()
    for *_, shard, row in ledger_rows(run, "main"):
        ids = row_of(build, shard, row)[0]
        for piece in np.split(ids, np.flatnonzero(ids == begin))[1:]:
            found[tokenizer.decode(piece[1 : np.flatnonzero(piece == end)[0]].tolist())] += 1
    return found


def test_every_copy_that_was_consumed_is_an_exposure(tmp_path: Path) -> None:
    graded.written(tmp_path, rows={"msl": 256, "pack": "best_fit", "documents": "masked"})
    build, run = corpora.built(tmp_path), tmp_path / "run"
    settings = write_run(tmp_path / "run.yaml", model={"max_position_embeddings": 256})
    session.train(build, str(settings), run, say=lambda _: None)
    counts, expected = consumed(build, run), graded.wanted(graded.records())
    assert max(counts.values()) > 1
    texts = (
        sorted(expected, key=lambda text: (expected[text], text))[-40::3]
        + [text for text, times in expected.items() if not times][:2]
    )
    listed = tmp_path / "list.txt"
    digests = [xxhash.xxh3_128_hexdigest(text.encode()) for text in texts]
    listed.write_text("".join(f"digest:{digest}\n" for digest in digests), "utf-8")
    audit = cm.audit(run, listed)
    for text, entry in zip(texts, audit.entries, strict=True):
        assert sum(one.pieces for one in entry.own) == counts[text], entry.entry
