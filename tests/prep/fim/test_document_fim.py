"""FIM on documents: pieces rejoin byte for byte, in the form asked, drawn for each on its own."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.fim.document_fim import (
    LEFT_TO_RIGHT,
    PSM,
    SPM,
    DocumentFim,
    FimSettings,
    Plan,
    Sentinels,
)
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import FIM_TOKENIZERS, byte_level, document, llama, small, texts

Make = Callable[[], Tokenizer]
each = pytest.mark.parametrize("make", FIM_TOKENIZERS.values(), ids=FIM_TOKENIZERS)


@dataclass(frozen=True)
class Parts:
    """A permuted document taken apart."""

    form: int
    prefix: list[int]
    middle: list[int]
    suffix: list[int]


def encoder(
    tokenizer: Tokenizer, seed: int = 7, domain: str = "code", epoch: int = 0, **chosen: object
) -> DocumentFim:
    fields = {"rate": 1.0, **chosen}
    return DocumentFim(tokenizer, FimSettings(**fields), seed, domain, epoch)  # type: ignore[arg-type]


def parts(encoded: Encoded, marks: Sentinels, prefix: int) -> Parts:
    """Take ids apart at the sentinels; prefix: the tokens of the prefix, for SPM does not tell."""
    ids = encoded.ids.tolist()
    suffix, middle = ids.index(marks.suffix), ids.index(marks.middle)
    assert ids[0] == marks.prefix
    assert suffix < middle
    if encoded.fim == SPM:
        assert suffix == 1
        rest = ids[middle + 1 :]
        return Parts(SPM, rest[:prefix], rest[prefix:], ids[2:middle])
    return Parts(PSM, ids[1:suffix], ids[middle + 1 :], ids[suffix + 1 : middle])


@each
@settings(max_examples=80, deadline=None)
@given(text=texts.filter(bool), seed=st.integers(0, 9))
def test_pieces_rejoin_byte_for_byte(make: Make, text: str, seed: int) -> None:
    tokenizer = make()
    made = encoder(tokenizer, seed)(document(text, 5))
    first, second = made.cuts
    assert 0 <= first <= second <= len(text)
    given = [text[:first], text[first:second], text[second:]]
    told = text.replace("▁", " ") if tokenizer.dummy_prefix else text
    found = parts(made, fim.sentinels(tokenizer), len(tokenizer.encode(given[0])))
    assert (made.number, made.controls, made.fim) == (5, 3, found.form)
    pieces = [
        tokenizer.decode(found.prefix),
        tokenizer.decode(found.middle, whole=False),
        tokenizer.decode(found.suffix, whole=False),
    ]
    assert pieces == [told[:first], told[first:second], told[second:]]
    assert "".join(pieces).encode() == told.encode()


@each
@settings(max_examples=60, deadline=None)
@given(text=texts, rate=st.sampled_from([0.5, 1.0]), cut=st.sampled_from(["character", "token"]))
def test_three_controls_stand_in_a_permuted_document_and_none_in_another(
    make: Make, text: str, rate: float, cut: str
) -> None:
    tokenizer = make()
    marks = fim.sentinels(tokenizer)
    made = encoder(tokenizer, rate=rate, cut=cut)(document(text))
    controls = made.ids[np.isin(made.ids, tokenizer.controls)].tolist()
    if made.fim == LEFT_TO_RIGHT:
        assert (controls, made.controls, made.cuts) == ([], 0, (-1, -1))
        assert made.ids.tolist() == tokenizer.encode(text).tolist()
    else:
        assert sorted(controls) == sorted([marks.prefix, marks.middle, marks.suffix])
        assert made.controls == 3


@each
@settings(max_examples=60, deadline=None)
@given(text=texts.filter(bool))
def test_token_cuts_keep_the_ids_of_the_whole_document(make: Make, text: str) -> None:
    tokenizer = make()
    made = encoder(tokenizer, cut="token")(document(text))
    first, second = made.cuts
    found = parts(made, fim.sentinels(tokenizer), first)
    ids = tokenizer.encode(text).tolist()
    assert [*found.prefix, *found.middle, *found.suffix] == ids
    assert (len(found.prefix), len(found.suffix)) == (first, len(ids) - second)


@each
def test_rate_0_permutes_nothing_and_rate_1_all_that_has_a_text(make: Make) -> None:
    tokenizer = make()
    for i in range(200):
        assert encoder(tokenizer, rate=0.0)(document(f"text {i}")).fim == LEFT_TO_RIGHT
        assert encoder(tokenizer, rate=1.0)(document(f"text {i}")).fim in (PSM, SPM)
    assert encoder(tokenizer, rate=1.0)(document("")).fim == LEFT_TO_RIGHT


@pytest.mark.parametrize(("spm_rate", "form"), [(0.0, PSM), (1.0, SPM)])
def test_the_form_is_the_one_asked(spm_rate: float, form: int) -> None:
    forms = {encoder(small(), spm_rate=spm_rate)(document(f"text {i}")).fim for i in range(100)}
    assert forms == {form}


def test_the_layouts_are_those_of_the_paper() -> None:
    marks = Sentinels(prefix=100, middle=101, suffix=102)
    pieces = (np.array([1, 2]), np.array([3]), np.array([4, 5]))
    psm = fim.arrange(Plan(PSM, 2, 3), pieces, marks)
    assert psm.tolist() == [100, 1, 2, 102, 4, 5, 101, 3]
    spm = fim.arrange(Plan(SPM, 2, 3), pieces, marks)
    assert spm.tolist() == [100, 102, 4, 5, 101, 1, 2, 3]
    none = np.array([], np.int64)
    assert fim.arrange(Plan(PSM, 0, 0), (none,) * 3, marks).tolist() == [100, 102, 101]


def drawn(count: int, **fields: object) -> list[Encoded]:
    """Encode texts of nine characters each."""
    encode = encoder(byte_level(), **fields)  # type: ignore[arg-type]
    return [encode(document(f"{i:09d}")) for i in range(count)]


def test_rates_and_cuts_are_as_frequent_as_asked() -> None:
    count = 4000
    made = drawn(count, rate=0.3, spm_rate=0.25)
    permuted = [each for each in made if each.fim]
    assert abs(len(permuted) - 0.3 * count) < 4 * (count * 0.3 * 0.7) ** 0.5
    spm = sum(each.fim == SPM for each in permuted)
    assert abs(spm - 0.25 * len(permuted)) < 4 * (len(permuted) * 0.25 * 0.75) ** 0.5
    places = np.bincount([place for each in permuted for place in each.cuts], minlength=10)
    assert len(places) == 10  # nine characters have ten places
    expected = 2 * len(permuted) / 10
    assert ((places - expected) ** 2 / expected).sum() < 28  # 9 degrees: one in 1000, and fixed
    both = np.corrcoef([each.fim for each in permuted], [each.cuts[0] for each in permuted])[0, 1]
    assert abs(both) < 0.12


def test_every_epoch_domain_and_seed_cuts_anew() -> None:
    plans = {
        name: [(each.fim, each.cuts) for each in drawn(60, **fields)]
        for name, fields in {
            "same": {},
            "epoch": {"epoch": 1},
            "domain": {"domain": "web"},
            "seed": {"seed": 8},
        }.items()
    }
    assert plans["same"] == [(each.fim, each.cuts) for each in drawn(60)]
    for one, other in combinations(plans.values(), 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12


@settings(max_examples=30, deadline=None)
@given(st.lists(texts, max_size=8), st.randoms(use_true_random=False), st.integers(0, 99))
def test_a_document_is_cut_alike_whatever_stands_around_it(
    given: list[str], random: object, shift: int
) -> None:
    encode = encoder(small(), rate=0.7)
    alone = {text: encode(document(text)) for text in given}
    shuffled = [*given]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for number, text in enumerate(shuffled, start=shift):
        made = encode(document(text, number))
        assert made.number == number
        assert made.ids.tolist() == alone[text].ids.tolist()
        assert (made.fim, made.cuts) == (alone[text].fim, alone[text].cuts)


def test_draws_are_what_they_always_were() -> None:
    made = [
        encoder(small(), rate=0.9)(document(f"def f{i}():\n    return {i}\n")) for i in range(6)
    ]
    assert [(each.fim, *each.cuts) for each in made] == [
        (SPM, 5, 18),
        (SPM, 5, 10),
        (PSM, 3, 8),
        (PSM, 0, 3),
        (PSM, 6, 7),
        (PSM, 5, 5),
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 4095, 2**40])
def test_extreme_draws_stay_within_the_text(length: int) -> None:
    chosen = FimSettings(rate=1.0)
    least: NDArray[np.float64] = np.zeros(4)
    most: NDArray[np.float64] = np.full(4, 1 - 2.0**-53)
    assert fim.plan(chosen, least.tolist(), length) == Plan(SPM, 0, 0)
    assert fim.plan(chosen, most.tolist(), length) == Plan(PSM, length, length)
    mixed = np.array([0, most[0], 0, 0])
    assert fim.plan(chosen, mixed.tolist(), length) == Plan(SPM, 0, length)
    assert fim.plan(chosen, least.tolist(), 0).form == LEFT_TO_RIGHT


def test_a_tokenizer_without_sentinels_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no fim_prefix token"):
        encoder(llama())


@pytest.mark.parametrize("name", ["rate", "spm_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.9, float("nan")])
def test_a_rate_must_be_a_share(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: must lie in \[0, 1\], got"):
        FimSettings(**{"rate": 0.5, name: value})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"dialect": "cerebras"}, "level: must be row with dialect: cerebras, got document"),
        ({"dialect": "cerebras", "level": "row", "cut": "token"}, "cut: must be character with"),
        ({"dialect": "cerebras", "level": "row", "loss": "middle"}, "loss: must be all with"),
        ({"processes": 2}, "processes, first_seed: are for dialect: cerebras"),
        ({"first_seed": 2}, "processes, first_seed: are for dialect: cerebras"),
        ({"dialect": "cerebras", "level": "row", "processes": 0}, "processes: must be positive"),
        ({"dialect": "cerebras", "level": "row", "first_seed": -1}, "first_seed: must lie in"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    fields: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        FimSettings(**{"rate": 0.9, **fields})  # type: ignore[arg-type]
