"""Evidence: a line for every run, phase and domain, and the same bytes for the same spec."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.measure import HeldOutLoss
from crystalmix.train.ablations.proxies import ProxyResult, RunEntry
from crystalmix.train.ablations.tables import FITS, LOSSES, RUNS
from helpers.ablations import copied, tiny, varied


@pytest.mark.parametrize(("name", "schema"), [("runs", RUNS), ("losses", LOSSES), ("fits", FITS)])
def test_a_table_has_its_schema(name: str, schema: object) -> None:
    assert pq.read_table(tiny() / "tables" / f"{name}.parquet").schema.equals(schema)


def test_there_is_a_loss_for_every_run_and_domain_after_every_phase() -> None:
    query = """
        SELECT run, count(DISTINCT stage) AS stages, count(*) AS n,
               count(*) FILTER (last) AS ends, max(len(manifests)) AS phases, role
        FROM losses JOIN runs USING (run) GROUP BY run, role
    """
    rows = evidence.connect(varied()).rows(query)
    assert rows
    for row in rows:
        assert row["stages"] == row["phases"]
        targets = 5 if row["role"] == "factor" else 3  # middles of both domains of code too
        assert (row["n"], row["ends"]) == (targets * row["phases"], targets)


def test_shares_that_were_asked_sum_to_one_and_so_do_those_that_were_got() -> None:
    for row in evidence.connect(varied()).rows("SELECT asked, got FROM runs"):
        for key in ("asked", "got"):
            assert sum(dict(row[key]).values()) == pytest.approx(1, abs=1e-6)


def test_fits_tell_parameters_as_json() -> None:
    rows = evidence.connect(tiny()).rows("SELECT * FROM fits WHERE law = 'effective'")
    assert [row["domain"] for row in rows] == ["wiki", "python", "javascript"]
    told = json.loads(rows[0]["parameters"])
    assert set(told["targets"]) == {"wiki", "python", "javascript"}
    assert rows[0]["sigma"] == pytest.approx(told["targets"]["wiki"]["sigma"])


def test_the_digest_is_of_every_byte_of_the_tables(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    assert evidence.digest(out) == evidence.digest(tiny())
    path = out / "tables" / "losses.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    assert evidence.digest(out) != evidence.digest(tiny())


def test_a_folder_of_something_else_is_no_ablation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tables yet"):
        evidence.connect(tmp_path)


def test_losses_are_those_of_the_last_phase() -> None:
    losses = [
        HeldOutLoss(domain, nll, 0.1, 1.0, 9, 9, 1, stage)
        for domain, nll, stage in [("a", 9.0, 1), ("b", 8.0, 1), ("a", 2.0, 2), ("b", 1.0, 2)]
    ]
    entry = RunEntry("tiny", 1, 1, 2, 9, 2.0, 0, {}, [], "", "")
    matrix = evidence.loss_matrix([ProxyResult(entry, tuple(losses))], ["b", "a"])
    assert matrix.tolist() == [[1.0, 2.0]]
