"""Corpus: what a build holds, domain by domain, and what a target would take of it."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from crystalmix.mixtures.ablations import published_mixtures
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.train.record.views import Traced
from crystalmix.train.trace.answers import Table

DOMAINS = """
    WITH held AS (
      SELECT DISTINCT p.domain, s.shard FROM shards s JOIN parts p USING (phase, part)),
    pieces AS (SELECT DISTINCT h.domain, x.* FROM held h JOIN spans x USING (shard)),
    counted AS (
      SELECT domain, source, document, sum(stop - start) AS tokens FROM pieces GROUP BY ALL)
    SELECT c.domain, count(*) AS documents, sum(c.tokens)::BIGINT AS tokens,
           sum(d.bytes)::BIGINT AS bytes
    FROM counted c JOIN documents d USING (source, document) GROUP BY c.domain ORDER BY c.domain
"""
SOURCES = """
    WITH held AS (
      SELECT DISTINCT p.domain, s.shard FROM shards s JOIN parts p USING (phase, part))
    SELECT x.source, h.domain, sum(x.stop - x.start)::BIGINT AS tokens
    FROM held h JOIN spans x USING (shard) GROUP BY ALL ORDER BY h.domain, tokens DESC, x.source
"""
PHASES = """
    SELECT domain, phase, sum(tokens)::BIGINT AS tokens FROM parts
    GROUP BY ALL ORDER BY phase, domain
"""
COLUMNS = """
    SELECT column_name AS name FROM duckdb_columns()
    WHERE table_name = 'documents' AND lower(column_name) LIKE '%licen%' ORDER BY ALL
"""


def domains(traced: Traced) -> Table:
    """Return domain, documents, tokens, bytes, variants of each domain that a phase draws from.

    variants: FIM epochs that the domain's rows hold; tokens are those of one of them. Where
    documents are upsampled, tokens are those of all copies.
    """
    variants, rows = _variants(traced), traced.rows(DOMAINS)
    for row in rows:
        row["variants"] = variants[row["domain"]]
        row["tokens"] //= row["variants"]
    return Table(pa.Table.from_pylist(rows))


def licences(traced: Traced, most: int = 8) -> Table:
    """Return source, licence, documents: the commonest licences where a recipe keeps them."""
    rows: list[dict[str, Any]] = []
    for column in traced.rows(COLUMNS):
        name = '"' + column["name"].replace('"', '""') + '"'
        rows += traced.rows(
            f"SELECT source, {name} AS licence, count(*) AS documents FROM documents "
            f"WHERE {name} IS NOT NULL GROUP BY ALL "
            "QUALIFY row_number() OVER (PARTITION BY source ORDER BY count(*) DESC, licence) <= ? "
            "ORDER BY source, documents DESC, licence",
            [most],
        )
    return Table(pa.Table.from_pylist(rows))


def links(traced: Traced) -> tuple[list[tuple[str, str, float]], list[tuple[str, str, float]]]:
    """Return what flows from sources to domains, and what from domains to phases, in tokens."""
    variants = _variants(traced)
    first = [
        (row["source"], row["domain"], row["tokens"] / variants[row["domain"]])
        for row in traced.rows(SOURCES)
    ]
    second = [(r["domain"], r["phase"], float(r["tokens"])) for r in traced.rows(PHASES)]
    return first, second


def _variants(traced: Traced) -> dict[str, int]:
    every = (part for manifest in traced.manifests.values() for part in manifest.parts)
    return {part.domain: 1 if part.upsampling else part.variants for part in every}


def compared(
    tokens: Mapping[str, int], target: float, max_epochs: float = 4.0
) -> dict[str, dict[str, float]]:
    """Return known mixtures of domains of so many tokens, those left out that do not apply."""
    known = {
        "natural": published_mixtures.natural,
        "uniform": published_mixtures.uniform,
        "UniMax": lambda shares: published_mixtures.unimax(shares, target, max_epochs),
        "CrystalCoder 1": published_mixtures.crystal_phase1,
        "CrystalCoder 2": published_mixtures.crystal_phase2,
        "CrystalCoder 3": published_mixtures.crystal_phase3,
    }
    mixtures: dict[str, dict[str, float]] = {}
    for name, shares_of in known.items():
        with suppress(RefusalError):
            mixtures[name] = shares_of(tokens)
    return mixtures


def repeats(
    shares: Mapping[str, float], tokens: Mapping[str, int], target: float
) -> dict[str, float]:
    """Return how often a run of `target` tokens goes through each domain."""
    return {name: share * target / tokens[name] for name, share in shares.items()}
