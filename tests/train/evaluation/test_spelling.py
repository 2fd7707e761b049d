"""What held-out labels spell: bytes of the raw texts, and FIM's middles as spans cut the texts."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from torch import Tensor, nn

from crystalmix.prep.rows import spans
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.evaluation.held_out import HeldOut, hold_out
from crystalmix.train.evaluation.losses import held_out_losses
from crystalmix.train.evaluation.sampling import greedy
from crystalmix.train.evaluation.spelling import RowMarks, Spelling
from crystalmix.train.record.metrics import HeldOutLoss, bits_of_parts
from helpers.corpora import built, write_corpus, write_recipe
from helpers.runs import scratch
from helpers.watched import SPLIT

HELD: list[str] = ["wiki-held", "code-held", "spm-held", "row-held", "token-held"]
CUTS: Mapping[str, Any] = {
    "code-held": {"rate": 0.5},
    "spm-held": {"rate": 1.0, "spm_rate": 1.0},
    "row-held": {"rate": 0.7, "level": "row"},
    "token-held": {"rate": 0.8, "cut": "token"},
}


@lru_cache(maxsize=1)
def build() -> Path:
    """Return a build whose held-out documents fit in rows, cut in every way."""
    folder = scratch()
    write_corpus(folder)
    domains = {
        name: {"sources": ["code"], "split": "valid", "fim": fim, "epochs": 1}
        for name, fim in CUTS.items()
    }
    parts = [{"domain": name, "weight": 0.2, "max_epochs": 99} for name in HELD]
    held = {"steps": 12, "batch": 5, "max_shared": 1, "parts": parts}
    mixed = {"steps": 2, "parts": [{"domain": "wiki", "weight": 1.0, "max_epochs": 99}]}
    phases = {**SPLIT["phases"], "mixed": mixed, "held": held}
    domains = {**SPLIT["domains"], **domains}
    write_recipe(folder, **{**SPLIT, "domains": domains, "phases": phases, "rows": {"msl": 256}})
    return built(folder)


def held(rows: int | None = None) -> HeldOut:
    return hold_out(build(), "held", rows)


def spelling(one: HeldOut) -> Spelling:
    tokenizer = load(TokenizerSettings(str(build() / "tokenizer.json")))
    return Spelling(tokenizer, one.manifest.tokenizer.special)


def every_row(one: HeldOut, name: str) -> Iterator[tuple[Any, RowMarks, list[dict[str, Any]]]]:
    """Yield each row of a part once, its marks, and its spans as the file has them."""
    [number] = [i for i, part in enumerate(one.manifest.parts) if part.name == name]
    paths = [one.root / path for path in one.manifest.paths]
    seen: set[tuple[int, int]] = set()
    for place in np.flatnonzero(one.refs.part == number).tolist():
        key = int(one.refs.shard[place]), int(one.refs.row[place])
        if key not in seen:
            seen.add(key)
            [row] = gather(paths, np.array(key[:1]), np.array(key[1:])).astype(np.int64)
            told = spans.of_rows(paths[key[0]], np.array(key[1:]))
            assert told is not None
            yield row, spelling(one).marks(row[0], row[2], one.spans[place]), told.to_pylist()
    assert len(seen) == one.manifest.parts[number].available


def texts() -> dict[int, str]:
    """Return the text of each code document, from the raw files."""
    table = pq.read_table(build() / "sources/code/documents.parquet").to_pylist()
    raw = {str(e["file"]) for e in table}
    content = {name: pq.read_table(build().parent / name)["content"].to_pylist() for name in raw}
    return {e["document"]: content[e["file"]][e["record"]] for e in table}


@pytest.mark.parametrize("name", [name for name in HELD if name != "row-held"])
def test_the_bytes_of_a_domain_are_those_of_its_documents(name: str) -> None:
    """Each token of a domain is a label once, but the first, which is BOS and no text."""
    source = "wiki" if name == "wiki-held" else "code"
    table = pq.read_table(build() / f"sources/{source}/documents.parquet").to_pylist()
    sizes = {entry["document"]: entry["bytes"] for entry in table}
    found, documents = 0, set[int]()
    for row, marks, told in every_row(held(), name):
        found += int((marks.sizes * row[1]).sum())
        documents |= {entry["document"] for entry in told}
    assert found == sum(sizes[document] for document in documents) > 3000


@pytest.mark.parametrize("name", CUTS)
def test_middles_are_what_the_cuts_of_spans_say_of_the_raw_texts(name: str) -> None:
    """Of rows' own cuts, which are counted in a segment, those of whole documents are held."""
    reference = tokenizers.Tokenizer.from_file(str(build() / "tokenizer.json"))
    one, text_of = held(), texts()
    special = one.manifest.tokenizer.special
    seen, cut = 0, 0
    for row, marks, told in every_row(one, name):
        middles = list(marks.middles)
        for entry in told:
            ids = row[0][entry["start"] : entry["stop"]].tolist()
            own = [m for m in middles if entry["start"] <= m.first < entry["stop"]]
            if entry["fim"] == 0 or entry["cut1"] == entry["cut2"]:
                assert own == []
                continue
            marked = [special[part] in ids for part in ("fim_prefix", "fim_suffix", "fim_middle")]
            if not own:
                ended = special["eos"] in ids or row[2][-1] == special["eos"]
                cut += 1
                assert not all(marked) or (entry["fim"] == 2 and not ended)
                continue
            [middle] = own
            if name == "token-held" and "s>" in text_of[entry["document"]]:
                continue  # the reference takes it for a control token
            labels = row[2][middle.first : middle.stop].tolist()
            wanted = whole_middle(reference, text_of[entry["document"]], entry, name)
            spelt = b"".join(spelling_of(reference, number) for number in labels)
            assert wanted.startswith(spelt) if entry["offset"] == 0 else name == "row-held"
            if middle.whole and entry["offset"] == 0:
                assert spelt == wanted
                assert row[2][middle.stop : middle.end].tolist() in ([special["eos"]], [])
                seen += 1
        assert len(middles) == sum(entry["fim"] > 0 for entry in told) - marks.left_out - sum(
            entry["fim"] > 0 and entry["cut1"] == entry["cut2"] for entry in told
        )
    assert seen > 1
    assert cut > 0


def whole_middle(reference: tokenizers.Tokenizer, text: str, entry: Any, name: str) -> bytes:
    if name != "token-held":
        return text[entry["cut1"] : entry["cut2"]].encode()
    ids = reference.encode(text, add_special_tokens=False).ids[entry["cut1"] : entry["cut2"]]
    spelt = b"".join(spelling_of(reference, number) for number in ids)
    return spelt if entry["cut1"] else spelt[1:]  # the dummy space, where the prefix is empty


def spelling_of(reference: tokenizers.Tokenizer, number: int) -> bytes:
    piece = reference.id_to_token(number)
    if piece.startswith("<0x"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()


class Lookup(nn.Module):
    """A model that knows rows by heart: after a row's beginning its next token, else token 5.

    Where `wrong` names a row and a label it gives token 5 in its place.
    """

    def __init__(self, rows: Any, wrong: set[tuple[int, int]]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.known: dict[int, int] = {}
        for number, row in enumerate(rows):
            keys = accumulate(row[0].tolist(), lambda key, token: hash((key, token)))
            for place, (key, label) in enumerate(zip(keys, row[2].tolist(), strict=True)):
                self.known[key] = 5 if (number, place) in wrong else label

    def forward(self, ids: Tensor, documents: object = None) -> Tensor:
        keys = [accumulate(row, lambda key, token: hash((key, token))) for row in ids.tolist()]
        likely = [[self.known.get(key, 5) for key in row] for row in keys]
        return self.scale * nn.functional.one_hot(torch.tensor(likely), 424).float()


@torch.no_grad()
def test_middles_are_exact_where_greedy_decoding_gives_them() -> None:
    one = held(25)
    paths = [one.root / path for path in one.manifest.paths]
    rows = gather(paths, one.refs.shard, one.refs.row).astype(np.int64)
    spelt = spelling(one)
    marks = [spelt.marks(r[0], r[2], p) for r, p in zip(rows, one.spans, strict=True)]
    middles = [(i, middle) for i, m in enumerate(marks) for middle in m.middles if middle.whole]
    ends = [middle.end - 1 if i % 2 else middle.first for i, middle in middles]
    wrong = {(i, end) for (i, _), end in list(zip(middles, ends, strict=True))[::3]}
    model = Lookup(rows, wrong)
    decoded: dict[str, list[bool]] = {}
    for i, middle in middles:
        prompt, wanted = rows[i][0][: middle.first + 1], rows[i][2][middle.first : middle.end]
        [new] = greedy(model, [prompt.tolist()], len(wanted), 0)
        name = one.manifest.parts[int(one.refs.part[i])].name
        decoded.setdefault(name, []).append(new == wanted.tolist())
    told = held_out_losses(model, one, 7, spelling=spelt)
    lines = {line.part: line for line in told if line.kind == "middle"}
    for name, found in decoded.items():
        assert (lines[name].whole, lines[name].exact) == (len(found), sum(found))
    assert {True, False} == {each for found in decoded.values() for each in found}
    assert set(lines) == set(CUTS)
    assert any(line.left_out for line in lines.values())


@torch.no_grad()
def test_bits_per_byte_are_the_nll_of_texts_labels_over_their_bytes() -> None:
    one = held()
    paths = [one.root / path for path in one.manifest.paths]
    rows = gather(paths, one.refs.shard, one.refs.row).astype(np.int64)
    spelt = spelling(one)
    told = held_out_losses(model := Lookup(rows, set()), one, 7, spelling=spelt)
    logs = model(torch.from_numpy(rows[:, 0])).double().log_softmax(-1)
    nll = -logs.gather(-1, torch.from_numpy(rows[:, 2])[..., None])[..., 0].numpy()
    control = [*one.manifest.tokenizer.special.values(), 0]
    text = (rows[:, 1] == 1) & ~np.isin(rows[:, 2], control)
    marked = zip(rows, one.spans, strict=True)
    sizes = np.array([spelt.marks(row[0], row[2], pieces).sizes for row, pieces in marked])
    for number, part in enumerate(one.manifest.parts):
        own = one.refs.part == number
        chosen, total = text & own[:, None], int(sizes[own][text[own]].sum())
        lines = [line for line in told if line.part == part.name and line.kind != "middle"]
        assert sum(line.bytes or 0 for line in lines) == total
        [bits] = [each for each in bits_of_parts(told) if each.part == part.name]
        assert bits.bytes == total
        assert bits.bits_per_byte == pytest.approx(nll[chosen].sum() / log(2) / total, rel=1e-6)


def test_lines_of_before_have_no_bits() -> None:
    old = HeldOutLoss(1, "a", "fim", 2, 3, 1.5)
    assert bits_of_parts([old]) == []
    assert old.exact_match is None
