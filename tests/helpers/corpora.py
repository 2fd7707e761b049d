"""A small corpus in the layouts of SlimPajama and StarCoder, a recipe over it, and its build.

Everything is made here: words of our own, a tokenizer trained on them, and a recipe of three phases
that has one of each kind: halves, a subset, a `where`, document-level FIM of two epochs, row-level
FIM, and a domain that is not shuffled. It builds in about a second.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from crystalmix.cli import main
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer import train_bpe as bpe

TALE = """crystal lattice quartz grain amber river stone ember willow thicket copper lantern
harbour meadow signal voyage gather weight portion measure vessel kettle spoon mixture batch ledger
token über naïve façade Zürich 日本 текст counts <s> </s>"""
WORDS = TALE.split()
SETS = ("RedPajamaWikipedia", "RedPajamaBook", "RedPajamaC4")
LANGUAGES = ("python", "javascript")
CODE = {
    "python": "def {0}({1}):\n    # {2} {3}\n    return {1} + {4}\n\n\n",
    "javascript": "function {0}({1}) {{\n\tlet {2} = `{3}`;\n\treturn {4};\n}}\n",
}

RECIPE: Json = {
    "name": "small",
    "seed": 7,
    "tokenizer": {"path": "tokenizer.json"},
    "rows": {"msl": 64, "rows_per_shard": 8},
    "sources": {
        "wiki": {
            "files": ["slimpajama/train"],
            "where": "meta.redpajama_set_name = 'RedPajamaWikipedia'",
        },
        "book": {
            "files": ["slimpajama/train"],
            "where": "meta.redpajama_set_name = 'RedPajamaBook'",
        },
        "web": {"files": ["slimpajama/train"], "where": "meta.redpajama_set_name = 'RedPajamaC4'"},
        "code": {
            "files": ["starcoderdata"],
            "text": "content",
            "identity": "max_stars_repo_name || '/' || max_stars_repo_path",
            "keep": ["max_stars_repo_name"],
        },
        "python": {
            "files": ["starcoderdata/python"],
            "text": "content",
            "identity": "max_stars_repo_name || '/' || max_stars_repo_path",
        },
    },
    "domains": {
        "wiki": {"sources": ["wiki"]},
        "book": {"sources": ["book"], "shuffle": False},
        "web": {"sources": ["web"]},
        "code": {"sources": ["code"], "fim": {"rate": 0.9}, "epochs": 2},
        "python": {"sources": ["python"], "fim": {"rate": 0.5, "level": "row"}},
    },
    "phases": {
        "prose": {
            "steps": 12,
            "batch": 4,
            "max_shared": 1,  # for tests that change what a source takes
            "parts": [
                {"domain": "wiki", "weight": 0.3, "half": "even"},
                {"domain": "book", "weight": 0.2},
                {"domain": "web", "weight": 0.5},
            ],
        },
        "mixed": {
            "steps": 16,
            "batch": 4,
            "parts": [
                {"domain": "wiki", "weight": 0.25, "half": "odd"},
                {"domain": "code", "weight": 0.75},
            ],
        },
        "code": {
            "steps": 10,
            "batch": 4,
            "max_shared": 1,  # python is in code too
            "parts": [
                {"domain": "python", "weight": 0.6},
                {"domain": "code", "weight": 0.3, "subset": [0.0, 0.5]},
                {"domain": "book", "weight": 0.1},
            ],
        },
    },
}

# What makes RECIPE harder for engines and kills: documents fitted into rows, and upsampled.
HARDER: Json = {
    "sources": {"code": {"keep": ["max_stars_repo_name", "max_stars_count"]}},
    "domains": {
        "wiki": {"rows": {"pack": "best_fit", "group_tokens": 700, "documents": "masked"}},
        "code": {
            "epochs": 1,
            "upsample": {"by": "max_stars_count", "curve": [[0, 0], [0.3, 0.5], [1, 3]]},
        },
    },
}


def write_corpus(folder: Path) -> None:
    """Write raw files and a tokenizer: `slimpajama/`, `starcoderdata/`, `tokenizer.json`."""
    for name, lines in _prose().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    for name, table in _programs().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    (folder / "tokenizer.json").write_bytes(tokenizer())


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write `recipe.yaml` to a folder and return its path.

    changes: merged into RECIPE; a mapping is merged key by key, None takes a key away, all else
    (lists too) replaces what is there: `write_recipe(folder, rows={"msl": 32})`.
    """
    path = folder / "recipe.yaml"
    yaml = YAML(typ="rt")
    yaml.width = 4096
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(merged(RECIPE, changes), file)
    return path


def unnoted(told: str) -> str:
    """Return what a command said on stderr, but for its notes."""
    lines = told.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("note: "))


def built(folder: Path, workers: int = 1) -> Path:
    """Build the recipe of a folder (both are written where missing); return `folder / "build"`."""
    if not (folder / "tokenizer.json").exists():
        write_corpus(folder)
    if not (folder / "recipe.yaml").exists():
        write_recipe(folder)
    build(recipes.load(folder / "recipe.yaml"), folder, folder / "build", workers=workers)
    return folder / "build"


def crystalmix(*words: object) -> Result:
    """Run the command line in this process; anything but an exit is raised."""
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def remove(path: Path) -> None:
    """Remove a folder of a build, and what lies in the store under its name."""
    rmtree(path.resolve())
    if path.is_symlink():
        path.unlink()


def contents(build: Path) -> Json:
    """Return what two builds of one recipe must have in common: every file, byte for byte.

    Only of receipts what depends on the times of raw files is left out (`seen`, their digest), of
    seals of lookups the digest of such a receipt, what a store remembers of raw files, and tables
    of shards, which are made when they are asked for.
    """
    kept = (build / "store" / "files", build / "lookup" / "shards")
    paths = [p for p in build.rglob("*") if not any(map(p.is_relative_to, kept))]
    found: Json = {"names": sorted(path.relative_to(build).as_posix() for path in paths)}
    for path in (path for path in paths if path.is_file()):
        name = path.relative_to(build).as_posix()
        if path.name not in {"receipt.json", "lookup.json"}:
            found[name] = path.read_bytes()
            continue
        sealed = orjson.loads(path.read_bytes())
        timely = {"digest", "seen", "receipt", "receipt_bytes", "receipt_digest"}
        found[name] = {key: sealed[key] for key in sealed if key not in timely}
    return found


def viewed(out: Path) -> dict[str, bytes]:
    """Return the files that a build's view names, but for receipts and their seal.

    Receipts follow from times of raw files, and from rows that were packed to files before.
    """
    paths = [path for name in ("sources/*/*", "domains/*/*/*") for path in out.glob(name)]
    paths += [path for path in out.glob("phases/**/*") if path.is_file()]
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}
    return {
        name: data
        for name, data in files.items()
        if not name.endswith(("receipt.json", "phases/receipts.json"))
    }


def merged(old: Any, new: Any) -> Any:
    """Return `old` with the changes of `new`; neither is touched."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    kept = {key: value for key, value in old.items() if key not in new}
    changed = {k: merged(old.get(k, {}), v) for k, v in new.items() if v is not None}
    return {key: (kept | changed)[key] for key in [*old, *new] if key in kept or key in changed}


@lru_cache(maxsize=1)
def tokenizer() -> bytes:
    """Return the tokenizer.json of this corpus."""
    texts = [orjson.loads(line)["text"] for lines in _prose().values() for line in lines if line]
    texts += [text for table in _programs().values() for text in table["content"].to_pylist()]
    return bpe.train((text for text in texts if text), 420)


def sentences(rng: np.random.Generator, count: int) -> str:
    """Return that many lines of prose."""
    return "\n".join(
        " ".join(rng.choice(WORDS, int(rng.integers(3, 12)))) + "." for _ in range(count)
    )


@lru_cache(maxsize=1)
def _prose() -> dict[str, list[bytes]]:
    """Return the lines of each file; some have no text, an empty one, or are blank."""
    files: dict[str, list[bytes]] = {}
    for number in range(3):
        rng = randomness.stream(1, "prose", number)
        texts: list[str | None] = [sentences(rng, int(rng.integers(1, 9))) for _ in range(42)]
        texts[5], texts[11] = "", None
        lines = [
            orjson.dumps({"text": text, "meta": {"redpajama_set_name": SETS[i % len(SETS)]}})
            for i, text in enumerate(texts)
        ]
        lines.insert(20, b"")
        files[f"slimpajama/train/chunk1/example_train_{number}.jsonl.zst"] = lines
    return files


@lru_cache(maxsize=1)
def _programs() -> dict[str, pa.Table]:
    files: dict[str, pa.Table] = {}
    for language in LANGUAGES:
        for number in range(2):
            rng = randomness.stream(1, language, number)
            rows = [
                {
                    "max_stars_repo_path": f"src/{language}/{i}.txt",
                    "max_stars_repo_name": f"{rng.choice(WORDS[:9])}/{rng.choice(WORDS[:9])}",
                    "max_stars_count": int(rng.integers(0, 9)),
                    "id": str(i),
                    "content": "".join(
                        CODE[language].format(*rng.choice(WORDS, 5))
                        for _ in range(int(rng.integers(1, 6)))
                    ),
                }
                for i in range(14)
            ]
            name = f"starcoderdata/{language}/train-{number:05d}-of-00002.parquet"
            files[name] = pa.Table.from_pylist(rows)
    return files
