"""Parquet tables of what an ablation measured.

    tables/runs.parquet     one line a run: role, factor, size, seeds, asked and got shares, digests
    tables/losses.parquet   one line a run, phase and target: loss, nats per token, bits per byte
    tables/fits.parquet     one line a law and domain: noise, misfit, rank correlation, parameters

The same spec gives the same bytes, however often it was killed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.trials import Trial
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.prep.rows.spans import write as write_table
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.database import connect as open_database
from crystalmix.prep.runtime.database import quoted
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.ablations.proxies import ProxyResult, RunEntry
from crystalmix.train.record.views import Traced

SPEC = "ablation.json"
REPORT = "report.json"
TABLES = ("runs", "losses", "fits")
SHARES = pa.map_(pa.string(), pa.float64())
RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("role", pa.string()),  # centre, design, replicate, anchor, scale, check or factor
        ("factor", pa.string()),
        ("level", pa.string()),
        ("size", pa.string()),
        ("parameters", pa.int64()),
        ("seed", pa.int64()),  # of the initial weights
        ("draw", pa.int64()),  # which rows of each domain
        ("steps", pa.int64()),
        ("tokens", pa.int64()),
        ("asked", SHARES),
        ("got", SHARES),  # of the ledger's rows
        ("final_loss", pa.float64()),  # mean training loss of the last steps
        ("spikes", pa.int64()),
        ("outlier", pa.bool_()),
        ("manifests", pa.list_(pa.string())),
        ("chain", pa.string()),  # of the ledger
        ("weights", pa.string()),
    ]
)
LOSSES = pa.schema(
    [
        ("run", pa.string()),
        ("stage", pa.int64()),  # how many phases were done
        ("last", pa.bool_()),  # whether the run was at its end
        ("domain", pa.string()),  # or a task, or `<domain>.infill`: its rows' middles
        ("loss", pa.float64()),  # what laws are fitted to: bits per byte of a task, else nll
        ("nll", pa.float64()),  # nats per token
        ("sem", pa.float64()),  # of the loss
        ("bits_per_byte", pa.float64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("rows", pa.int64()),
    ]
)
FITS = pa.schema(
    [
        ("law", pa.string()),
        ("domain", pa.string()),
        ("sigma", pa.float64()),  # of one run about the law, nats
        ("pure", pa.float64()),  # of runs of one mixture about their mean, nats
        ("misfit", pa.float64()),  # probability of so great a lack of fit
        ("rho", pa.float64()),  # Spearman, left-out against measured
        ("parameters", pa.string()),  # JSON
    ]
)


def write_runs(out: Path, trials: Sequence[Trial], results: Sequence[ProxyResult]) -> None:
    """Write the tables of runs and losses, in the order of the trials."""
    pairs = list(zip(trials, results, strict=True))
    runs = [_run(trial, result.run) for trial, result in pairs]
    losses = [
        {
            "run": trial.name,
            "last": loss.stage == len(trial.portions),
            "loss": loss.loss,
            **asdict(loss),
        }
        for trial, result in pairs
        for loss in result.losses
    ]
    write_table(_table(out, "runs"), pa.Table.from_pylist(runs, RUNS))
    write_table(_table(out, "losses"), pa.Table.from_pylist(losses, LOSSES))


def write_fits(out: Path, fits: Sequence[Fit]) -> None:
    """Write the table of fits: all laws side by side."""
    entries = [
        {
            "law": fit.kind,
            "domain": domain,
            **{key: float(getattr(fit, key)[i]) for key in ("sigma", "pure", "misfit", "rho")},
            "parameters": orjson.dumps(fit.content(), option=orjson.OPT_SORT_KEYS).decode(),
        }
        for fit in fits
        for i, domain in enumerate(fit.targets)
    ]
    write_table(_table(out, "fits"), pa.Table.from_pylist(entries, FITS))


def digest(out: Path) -> str:
    """Return the digest of all tables: what a recommendation rests on."""
    return receipts.digest([receipts.describe(_table(out, name)) for name in TABLES])


def connect(out: Path) -> Traced:
    """Open an ablation's tables as DuckDB views `runs`, `losses`, `fits`."""
    if not _table(out, "runs").exists():
        raise InputError(f"{out}: holds no tables yet; run `crystalmix ablate` to its end")
    connection = open_database(readable=[out])
    for name in TABLES:
        if _table(out, name).exists():
            path = quoted(_table(out, name).resolve().as_posix())
            older = name == "losses" and "loss" not in pq.read_schema(_table(out, name)).names
            columns = "*, nll AS loss" if older else "*"
            connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM read_parquet({path})")
    return Traced(out / "build", None, {}, lambda: connection)


def loss_matrix(results: Sequence[ProxyResult], targets: Sequence[str]) -> NDArray[np.float64]:
    """Return losses at the end of runs: (runs, targets), nats per token or bits per byte."""
    return np.array([[result.final(target) for target in targets] for result in results])


def _run(trial: Trial, run: RunEntry) -> Content:
    total = sum(run.rows.values())
    columns = {**asdict(trial), **asdict(run)}
    return {
        **{name: columns[name] for name in RUNS.names if name in columns},
        "run": trial.name,
        "asked": sorted(trial.shares.items()),
        "got": sorted((domain, rows / total) for domain, rows in run.rows.items()),
        "outlier": run.spikes > 0,
    }


def _table(out: Path, name: str) -> Path:
    return out / "tables" / f"{name}.parquet"
