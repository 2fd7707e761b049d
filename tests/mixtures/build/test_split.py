"""The split: by the text of a document, so that nothing validated on was trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RecipeError
from helpers import corpora

HELD: dict[str, Any] = {
    "code": {"split": "train"},
    "python": {"split": "train"},
    "held": {"sources": ["code"], "split": "valid", "shuffle": False},
}


def held_out(folder: Path) -> dict[str, set[bytes]]:
    """Build the small corpus with a third of the code held out; return each domain's digests."""
    corpora.write_corpus(folder)
    parts = [{"domain": "held", "weight": 0.5}, {"domain": "code", "weight": 0.5}]
    phases = {"check": {"steps": 2, "batch": 2, "parts": parts}}
    recipe = corpora.write_recipe(folder, valid=0.3, domains=HELD, phases=phases)
    build(recipes.load(recipe), folder, folder / "out", workers=1)
    assert verify(folder / "out") == []
    found: dict[str, set[bytes]] = {}
    for domain in ("code", "held", "python"):
        place = folder / "out" / "domains" / domain / "epoch-0"
        for path in sorted(place.glob("*.spans.parquet")):
            for piece in spans.read(path).to_pylist():
                digests = texts(folder / "out" / "sources" / piece["source"])
                found.setdefault(domain, set()).add(digests[piece["document"]])
    return found


def texts(source: Path) -> list[bytes]:
    digests = pq.read_table(source / "documents.parquet", columns=["digest"])["digest"]
    return [digest for digest in digests.to_pylist() if digest is not None]


def test_what_is_validated_on_was_not_trained_on_and_nothing_is_lost(tmp_path: Path) -> None:
    found = held_out(tmp_path)
    assert not found["held"] & (found["code"] | found["python"])
    whole = texts(tmp_path / "out" / "sources" / "code")
    assert found["held"] | found["code"] == set(whole)
    assert 0.1 < len(found["held"]) / len(set(whole)) < 0.5
    accounts = [
        receipts.read(tmp_path / "out" / "domains" / domain / "epoch-0").account
        for domain in ("code", "held")
    ]
    assert [account["documents"] + account["held_out"] for account in accounts] == [len(whole)] * 2
    sizes = [account["sources"]["code"]["bytes"] for account in accounts]
    source = receipts.read(tmp_path / "out" / "sources" / "code").account
    assert sum(sizes) == source["bytes"]


@given(digest=st.integers(0, 2**64 - 1), share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_document_is_on_one_side(digest: int, share: float, seed: int) -> None:
    sides = [Split(seed, share, "train").takes(digest), Split(seed, share, "valid").takes(digest)]
    assert sorted(sides) == [False, True]


def test_the_share_is_the_one_that_was_asked() -> None:
    digests = np.random.default_rng(1).integers(0, 2**63, 4000).tolist()
    taken = sum(Split(7, 0.25, "valid").takes(digest) for digest in digests)
    assert abs(taken / len(digests) - 0.25) < 0.03


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"domains": {"code": {"split": "train"}}}, "domains.code.split: needs a share to hold"),
        ({"valid": 1.5}, "valid: must be below 1, got 1.5"),
        (
            {"valid": 0.1, "domains": {**HELD, "code": {}}},
            "domains.code.split: documents of source code are held out for validation by another",
        ),
    ],
)
def test_a_split_that_would_leak_or_hold_out_nothing_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        recipes.load(corpora.write_recipe(tmp_path, **changes))
