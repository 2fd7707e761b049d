"""Two small sources with something of everything to drop, and the scan of a recipe over them."""

from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from crystalmix.mixtures.build import scan as scan_stage
from crystalmix.mixtures.build.context import Context
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout
from helpers import corpora
from helpers.materials import raw

EVALUATION = "how many clips did Natalia sell in April and May if she sold half as many in May"
PROSE = [
    f"Chapter {i}. " + " ".join(corpora.WORDS[(i * k) % len(corpora.WORDS)] for k in range(1, 80))
    for i in range(1, 31)
]


def records() -> dict[str, list[Json | bytes]]:
    """Return the raw files: two sources of two files, with something of everything to drop."""
    web = [
        {"text": text, "n": i, "m": {"url": f"https://a.org/{i}"}} for i, text in enumerate(PROSE)
    ]
    book = [
        {"text": text, "n": i, "m": {"url": f"https://b.org/{i}"}} for i, text in enumerate(PROSE)
    ]
    near = [{"text": f"{text.upper()} !", "n": 100 + i, "m": None} for i, text in enumerate(PROSE)]
    return {
        "web/a-0.jsonl": [*web[:10], b"{", {"text": None, "n": -1}, {"text": " ", "n": -2}, web[3]],
        "web/a-1.jsonl.zst": [web[4], *web[10:16], {"text": f"Q: {EVALUATION}", "n": 7}, *near[:2]],
        "book/b-0.jsonl": [book[5], *book[12:20], book[13], *near[12:15]],
        "book/b-1.parquet": [*book[18:30]],
    }  # fmt: skip


def corpus(folder: Path) -> Path:
    for name, lines in records().items():
        raw(folder / name, lines)
    raw(folder / "evals" / "gsm.jsonl", [{"question": EVALUATION}, {"question": "short"}])
    (folder / "out.txt").write_text(
        "# by url\nhttps://a.org/2\nhttps://a.org/99\nHTTPS://B.ORG/25\n"
    )
    return folder


BASE: Json = {
    "name": "small",
    "seed": 7,
    "tokenizer": {"path": "tokenizer.json"},
    "sources": {
        "web": {"files": ["web"], "identity": "n", "where": "n <> 1", "keep": ["m.url"]},
        "book": {"files": ["book"], "identity": "n", "keep": ["m.url"]},
    },
    "domains": {"all": {"sources": ["book", "web"]}},
    "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
}


def scan(folder: Path, out: str = "build", workers: int = 1, **changes: Any) -> dict[str, Json]:
    """Scan the sources of a changed recipe; return their receipts."""
    path = folder / "recipe.yaml"
    path.write_bytes(orjson.dumps(corpora.merged(BASE, changes)))  # JSON is YAML
    recipe = recipes.load(path)
    with Fanout(workers) as pool:
        context = Context(recipe, folder, folder / out, pool, tokenizer=None)  # type: ignore[arg-type]
        return {name: vars(receipt) for name, receipt in scan_stage.run(context).items()}


def select(**asked: Any) -> Json:
    return {"sources": {name: {"select": asked} for name in ("web", "book")}}


def dropped(told: Json) -> dict[str, Json]:
    return {name: receipt["account"]["dropped"] for name, receipt in told.items()}


def kept(folder: Path, name: str, out: str = "build") -> list[tuple[str, int]]:
    table = pq.read_table(folder / out / "sources" / name / "documents.parquet")
    assert table["document"].to_pylist() == list(range(len(table)))
    return list(zip(table["file"].to_pylist(), table["record"].to_pylist(), strict=True))


PLAIN = {"web": {"bad_json": 1, "no_text": 1, "blank": 1, "where": 1}, "book": {}}
EVERYTHING: Json = {
    "sources": {
        name: {
            "select": {
                "sample": 0.9,
                "limit": 12,
                "opt_out": [{"file": "out.txt", "match": "m.url"}],
                "decontaminate": {"files": ["evals"]},
            }
        }
        for name in ("web", "book")
    },
    "duplicates": {"exact": "recipe", "near": {"scope": "recipe"}},
}
