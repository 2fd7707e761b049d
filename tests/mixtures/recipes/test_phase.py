"""Phases: shares, budgets and epochs, in our order or Model Zoo's, built and verified."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.manifest import cerebras_order as zoo
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.plan.overlaps import Taken, common, seen
from crystalmix.mixtures.plan.plan import plan
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.recipes.phase import Part, Phase, shares
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from helpers import corpora

AMOUNTS = st.lists(st.decimals("0.01", 9, places=2), min_size=1, max_size=6)


def phase_of(kind: str, amounts: list[Any], **fields: Any) -> Phase:
    """Return a phase that asks so much of each of its parts."""
    parts = tuple(Part(f"d{i}", **{kind: float(a)}) for i, a in enumerate(amounts))
    return Phase(batch=4, parts=parts, name="p", **fields)


@given(amounts=AMOUNTS)
def test_a_budget_of_tokens_gives_proportions_and_whole_steps(amounts: list[Any]) -> None:
    phase = phase_of("tokens", [amount * 1000 for amount in amounts])
    weights = phase.weights([])
    asked = [Fraction(amount) * 1000 for amount in amounts]
    assert all(w * asked[0] == weights[0] * a for w, a in zip(weights, asked, strict=True))
    total = sum(asked)
    if total < 4 * 8:
        with pytest.raises(RefusalError, match="phase p: its tokens give .* less than a batch"):
            phase.steps_of([], 8)
    else:
        steps = phase.steps_of([], 8)
        assert steps * 4 * 8 <= total < (steps + 1) * 4 * 8
    assert shares("tokens", [part.asked for part in phase.parts], weights) == [
        weight / sum(weights) for weight in weights
    ]


@given(amounts=AMOUNTS, data=st.data())
def test_epochs_are_of_the_rows_there_are(amounts: list[Any], data: st.DataObject) -> None:
    phase = phase_of("epochs", amounts)
    rows = [data.draw(st.integers(1, 999)) for _ in amounts]
    weights = phase.weights(rows)
    wanted = [Fraction(amount) * count for amount, count in zip(amounts, rows, strict=True)]
    assert all(w * wanted[0] == weights[0] * r for w, r in zip(weights, wanted, strict=True))
    if sum(wanted) >= 4:
        assert phase.steps_of(rows, 8) == sum(wanted) // 4
    assert phase_of("epochs", amounts, steps=7).steps_of(rows, 8) == 7


@pytest.mark.parametrize(
    ("parts", "fields", "told"),
    [
        ((Part("a", 1.0), Part("b", tokens=9)), {"steps": 1}, "some ask by weight, some by tokens"),
        ((Part("a", 1.0),), {}, "steps: is required where parts have weights"),
        ((Part("a", 0.5),), {"steps": 1}, "weights must sum to 1, got 0.5"),
        ((Part("a", tokens=0),), {}, r"parts.0.tokens: must be positive \(leave the part out\)"),
    ],
)
def test_a_phase_that_can_not_be_is_refused(
    parts: tuple[Part, ...], fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Phase(batch=1, parts=parts, **fields)


def test_a_part_asks_in_one_way() -> None:
    with pytest.raises(ValueError, match="give one of weight, tokens or epochs, got none of them"):
        Part("a")
    with pytest.raises(ValueError, match="got weight and epochs"):
        Part("a", 0.5, epochs=2)


def test_what_earlier_phases_took_was_seen() -> None:
    part = Part("c4", 1, subset=(0.0, 0.1))
    even, odd = Part("c4", 1, half="even"), Part("c4", 1, half="odd")
    assert seen(part, 1000, []) == 0
    assert seen(part, 1000, [Taken(even, 9, 1.0)]) == 500
    assert seen(part, 1000, [Taken(even, 9, 1.0), Taken(odd, 9, 0.5)]) == 750
    assert seen(part, 1000, [Taken(even, 9, 3.0), Taken(odd, 9, 2.0)]) == 1000
    assert seen(part, 1000, [Taken(Part("web", 1), 9, 1.0)]) == 0
    assert common(even, odd) == 0
    assert common(Part("c4", 1, subset=(0.5, 1.0)), part) == 0


def built(folder: Path, phases: dict[str, Any]) -> list[Manifest]:
    """Build the small corpus with other phases; assert that it is sound and as planned."""
    gone = {name: None for name in ("prose", "mixed", "code") if name not in phases}
    corpora.write_corpus(folder / "raw")
    path = corpora.write_recipe(folder / "raw", phases={**gone, **phases})
    out = folder / "out"
    told = corpora.crystalmix("build", path, "--out", out, "--workers", 1)
    assert told.exit_code == 0, told.stderr
    assert verify(out) == []
    sealed = [manifests.read(out / "phases" / name) for name in phases]
    for planned, manifest in zip(plan(recipes.load(path), out), sealed, strict=True):
        assert (planned.steps, planned.order) == (manifest.steps, manifest.order_version)
        for part, one in zip(planned.parts, manifest.parts, strict=True):
            assert part.asked == pytest.approx(one.asked)
            assert abs(part.rows - one.rows) <= len(manifest.parts)
    return sealed


def test_budgets_and_epochs_are_built_as_they_were_asked(tmp_path: Path) -> None:
    tokens = {"batch": 4, "parts": [{"domain": "wiki", "tokens": 1024},
                                    {"domain": "web", "tokens": 3072}]}  # fmt: skip
    epochs = {"batch": 4, "parts": [{"domain": "python", "epochs": 2},
                                    {"domain": "book", "epochs": 0.5}]}  # fmt: skip
    first, second = built(tmp_path, {"budget": tokens, "repeats": epochs})
    assert first.steps == 4096 // (4 * 64)
    assert [part.rows for part in first.parts] == [16, 48]
    assert [part.asked for part in first.parts] == [0.25, 0.75]
    assert [part.budget for part in first.parts] == [{"tokens": 1024}, {"tokens": 3072}]
    python, book = second.parts
    assert python.epochs == pytest.approx(2, abs=4 / python.available)
    assert book.epochs == pytest.approx(0.5, abs=4 / book.available)


PARTS = [{"domain": "wiki", "weight": 0.3}, {"domain": "code", "weight": 0.7, "subset": [0.0, 0.4]}]


def test_the_order_of_model_zoo_is_built_and_kept_when_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "LONG", 10)
    phase = {"steps": 9, "batch": 4, "parts": PARTS, "cerebras": {"seed": 3, "subset": "1.9.1"}}
    [manifest] = built(tmp_path, {"audit": phase})
    wiki, code = manifest.parts
    assert manifest.order_version == "cerebras-1.9"
    # The second two fifths, though the first were asked: the fault of 1.9.1.
    shards = [(shard.path, shard.first) for shard in code.shards]
    assert shards[0][0] != "domains/code/shuffled/data-00000.h5"
    mixture = zoo.ZooMixture([wiki.available, code.available], [0.3, 0.7], 3)
    kept = manifest.folder / zoo.KEPT if manifest.folder else Path()
    assert np.array_equal(np.fromfile(kept, np.uint8), mixture.order)
    refs, wanted = manifest.rows(0, 36), mixture.refs(0, 36)
    assert np.array_equal(refs.part, wanted.part)
    order = np.fromfile(kept, np.uint8)
    i, j = int(np.flatnonzero(order == 0)[0]), int(np.flatnonzero(order == 1)[0])
    order[i], order[j] = 1, 0
    order.tofile(kept)
    assert any("order.u8 beside it is another order" in line for line in verify(tmp_path / "out"))
    kept.write_bytes(b"1")
    assert any("order.u8 beside it is another order" in line for line in verify(tmp_path / "out"))
    with pytest.raises(DamageError, match=r"order.u8: is not the order of its manifest; remove it"):
        manifests.read(tmp_path / "out" / "phases" / "audit").rows(0, 4)


def test_a_weight_of_nothing_is_taken_where_its_fault_is_asked_by_name(tmp_path: Path) -> None:
    parts = [{"domain": "wiki", "weight": 0.0}, *PARTS[:1], {"domain": "web", "weight": 0.7}]
    parts[1] = {**parts[1], "domain": "book"}
    fault = {"zeros": "misaligned"}
    phase = {"steps": 9, "batch": 4, "parts": parts, "cerebras": fault}
    [manifest] = built(tmp_path, {"audit": phase})
    assert [part.rows > 0 for part in manifest.parts] == [False, True, True]
    rows = [part.available for part in manifest.parts]
    assert isinstance(manifest.order, zoo.ZooOrder)
    assert manifest.order.mixture.length == sum(zoo.slots(rows, [0, 0.3, 0.7], "misaligned"))
