"""Row-level FIM in a build: which folder, whose draws, what account; in both dialects."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn, seed_of
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.fim.row_spans import Packed
from crystalmix.prep.rows import shards
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load
from helpers.corpora import built, contents, crystalmix, write_corpus, write_recipe
from helpers.laid_out import of_folder

One = Callable[[str, int], Path]
CEREBRAS = {"rate": 0.9, "level": "row", "dialect": "cerebras", "processes": 2, "first_seed": 5}
MIDDLE = {"rate": 0.5, "level": "row", "loss": "middle"}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> One:
    """Build one phase of one domain, two epochs of row-level FIM, in a dialect, by some workers."""
    return lru_cache(maxsize=4)(
        lambda dialect, workers: made(tmp_path_factory.mktemp("build"), dialect, workers)
    )


def made(folder: Path, dialect: str, workers: int) -> Path:
    write_corpus(folder)
    fim = CEREBRAS if dialect == "cerebras" else MIDDLE
    others = dict.fromkeys(("wiki", "book", "web", "code"))
    write_recipe(
        folder,
        rows={"rows_per_shard": 8},
        domains={
            "python": {"fim": fim, "epochs": 2},
            "plain": {"sources": ["python"], "shuffle": False},  # the rows that FIM is applied to
            **others,
        },
        sources=others,
        phases={
            "prose": None,
            "mixed": None,
            "code": {
                "steps": 2,
                "parts": [{"domain": "python", "weight": 0.5}, {"domain": "plain", "weight": 0.5}],
            },
        },
    )
    return built(folder, workers)


def tokenizer(build: Path) -> Tokenizer:
    return load(TokenizerSettings(str(build / "tokenizer.json")))


def receipt(folder: Path) -> dict[str, Any]:
    return orjson.loads((folder / "receipt.json").read_bytes())


def test_epochs_of_the_original_share_one_stream_a_shard(one: One, tmp_path: Path) -> None:
    build = one("cerebras", 1)
    chosen = FimSettings(**CEREBRAS)  # type: ignore[arg-type]
    told = []
    for epoch in range(2):
        given = shards.folder(build / "domains" / "plain" / "epoch-0")
        made = of_folder(build / "domains" / "python" / f"epoch-{epoch}-fim")
        assert len(given) > 2
        for number, path in enumerate(given):
            turn = Turn(seed_of(chosen, number, len(given)), 2, epoch)
            out = tmp_path / f"{epoch}-{number}.h5"
            LegacyFim(tokenizer(build), chosen, turn, local=False).apply(Packed.of(path), out)
            assert np.array_equal(made[path.name], shards.read(out))
        told.append(receipt(build / "domains" / "python" / f"epoch-{epoch}-fim"))
    assert told[0]["settings"]["draw"] == [2, 0]
    assert told[0]["content"] != told[1]["content"]
    for each in told:
        account = each["account"]
        grown = account["sentinels"] + account["recut"] - sum(account["dropped"].values())
        assert account["tokens_in"] + grown == account["tokens_out"]


def test_rows_of_the_exact_dialect_are_those_of_row_fim(one: One, tmp_path: Path) -> None:
    build = one("exact", 1)
    chosen, first = FimSettings(**MIDDLE), 0  # type: ignore[arg-type]
    made = of_folder(build / "domains" / "python" / "epoch-1-fim")
    for path in shards.folder(build / "domains" / "plain" / "epoch-0"):
        work = RowFim(tokenizer(build), chosen, receipt_seed(build), "python", 1)
        shard, _ = work.apply(Packed.of(path), first, tmp_path / path.name)
        first += shard.rows
        theirs = made[path.name]
        assert np.array_equal(theirs, shards.read(tmp_path / path.name))
        assert (theirs[:, 1].mean(axis=1) < 1).any()  # prefixes and suffixes are no labels


def receipt_seed(build: Path) -> int:
    return receipt(build / "domains" / "python" / "epoch-1-fim")["seed"]


@pytest.mark.parametrize("dialect", ["cerebras", "exact"])
def test_a_build_of_it_verifies(one: One, dialect: str) -> None:
    result = crystalmix("verify", one(dialect, 1))
    assert result.exit_code == 0, result.output


def test_workers_change_nothing(one: One) -> None:
    assert contents(one("cerebras", 1)) == contents(one("cerebras", 2))
