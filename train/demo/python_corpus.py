"""Gather real documents from the user's own Python installation, so that a demo needs no download.

Prose is written in the layout of SlimPajama, code in the layout of StarCoder:

    slimpajama/<set>/example_train_<k>.jsonl.zst    {"text", "meta": {"redpajama_set_name", ...}}
    starcoderdata/<language>/train-0000k-of-0000n.parquet
    gathered.json                                   settings and counts, written last

The sets bear names of their own, being no sample of SlimPajama. No file here has stars either:
`max_stars_count` is the number of files of its distribution. Same installation, same bytes.
"""

import ast
import csv
import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest
from zstandard import ZstdCompressor

from crystalmix.prep.runtime.atomic_files import canonical, read_json
from crystalmix.prep.runtime.errors import InputError, StaleError, UsageError
from crystalmix.prep.runtime.receipts import differences
from crystalmix.prep.runtime.types import Content

NAME = "gathered.json"
VERSION = 1  # of the way documents are chosen
LIBRARY = "cpython/stdlib"
OURSELVES = "crystalmix"  # our METADATA is our README, which shows what the demo gathered: a circle
SKIPPED = {"site-packages", "dist-packages", "__pycache__"}
MAX_FILE_BYTES = 200_000
MIN_DOCSTRINGS = 500  # characters of one module
ENOUGH = 0.95  # of a budget: beyond it, only ever smaller files would fit
PATIENCE = 64  # documents that do not fit, before a domain counts as full

SUFFIXES = {"py": "python", "js": "javascript", "mjs": "javascript", "html": "html", "css": "css"}
LANGUAGES = tuple(dict.fromkeys(SUFFIXES.values()))
PROSE = ("Topics", "Readme", "Docstrings", "Licences")
TOPICS = "pydoc_data/topics.py"
DOMAINS = LANGUAGES + PROSE
SIZES = (3_000_000, 1_000_000, 400_000, 400_000, 400_000, 300_000, 400_000, 100_000)
FULL = dict(zip(DOMAINS, SIZES, strict=True))


@dataclass(frozen=True)
class GatherSettings:
    """How much to gather: UTF-8 bytes of text per domain (0 or absent: leave it out)."""

    bytes_per_domain: Mapping[str, int] = field(default_factory=lambda: dict(FULL))
    prose_files: int = 4
    code_files: int = 2

    def __post_init__(self) -> None:
        if unknown := sorted({*self.bytes_per_domain} - {*DOMAINS}):
            raise UsageError(f"bytes_per_domain: {unknown} not among the domains {[*DOMAINS]}")
        if min(self.prose_files, self.code_files) < 1:
            raise UsageError("prose_files and code_files: must be 1 or more")


@dataclass(frozen=True)
class Gathered:
    """A finished folder: how many documents, and UTF-8 bytes of text, each domain holds."""

    folder: Path
    documents: dict[str, int]
    bytes: dict[str, int]


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # relative to its root
    repository: str
    siblings: int  # files in its repository
    tier: int


Document = tuple[_File, str]  # where it stands, and its text
Roots = tuple[Path, ...]  # the standard library, then folders of packages
DEFAULT = GatherSettings()
# About a sixth; but HTML comes in documents of 80 and 100 kB, and an Apache licence takes 11 kB.
TINY = GatherSettings({**{k: v // 6 for k, v in FULL.items()}, "html": 200_000, "Licences": 50_000})


def gather(out: Path, settings: GatherSettings = DEFAULT, roots: Roots | None = None) -> Gathered:
    """Write documents of this Python installation to `out`, or reuse what is there.

    Documents are valid UTF-8, unique by text, of files up to 200 kB, without paths of this machine.
    A later folder of `roots` only fills what the earlier ones leave open. A folder of the same
    settings is reused as it is, even if packages have changed since. Raises StaleError where `out`
    was made otherwise, InputError where a domain has no document.
    """
    recipe: Content = {"version": VERSION, "settings": asdict(settings)}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _reuse(out, recipe)
    chosen = _choose(settings, roots or installation())
    counts = {domain: len(documents) for domain, documents in chosen.items()}
    sizes = {name: sum(len(text.encode()) for _, text in texts) for name, texts in chosen.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        work = Path(temporary, "out")
        work.mkdir()
        for domain, documents in chosen.items():
            if domain in LANGUAGES:
                _write_code(work / "starcoderdata" / domain, documents, settings.code_files)
            else:
                _write_prose(work / "slimpajama" / domain, documents, settings.prose_files)
        (work / NAME).write_bytes(canonical({**recipe, "documents": counts, "bytes": sizes}))
        work.rename(out)
    return _reuse(out, recipe)


def installation() -> Roots:
    """Return the folders of the running Python; in a virtual environment, its base comes last."""
    paths = sysconfig.get_paths()
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    places = [paths["purelib"], paths["platlib"], sysconfig.get_path("purelib", vars=base)]
    return (Path(paths["stdlib"]), *map(Path, dict.fromkeys(places)))


def _reuse(out: Path, recipe: Content) -> Gathered:
    receipt = read_json(out / NAME) if (out / NAME).exists() else {}
    if differing := [
        line for key in recipe for line in differences(receipt.get(key), recipe[key], key)
    ]:
        reason = (
            f"was gathered otherwise ({'; '.join(differing[:3])})"
            if receipt
            else f"holds no {NAME}"
        )
        raise StaleError(f"{out}: {reason}; choose another folder or remove this one")
    return Gathered(out, receipt["documents"], receipt["bytes"])


def _choose(settings: GatherSettings, roots: Roots) -> dict[str, list[Document]]:
    """Fill the budget of each domain; raise InputError for one that stays empty."""
    files = _list_files(roots)
    chosen: dict[str, list[Document]] = {}
    seen: set[str] = set()
    for domain in (name for name in DOMAINS if settings.bytes_per_domain.get(name, 0)):
        budget = settings.bytes_per_domain[domain]
        used = {file.path for file, _ in chosen.get("python", [])}
        offers = (offer for offer in _offers(domain, files, used) if _is_sound(offer[1], roots))
        # Code comes in whole files, some large; prose in at least four documents.
        chosen[domain] = _fill(offers, budget, budget if domain in LANGUAGES else budget // 4, seen)
        if not chosen[domain]:
            raise InputError(
                f"{domain}: no document within {budget} bytes in {', '.join(map(str, roots))}; "
                "install a package that holds some, raise the budget or set it to 0"
            )
    return chosen


def _fill(offers: Iterable[Document], budget: int, most: int, seen: set[str]) -> list[Document]:
    """Take new texts of at most `most` bytes until the budget is full; add them to `seen`."""
    documents: list[Document] = []
    free, misses = budget, 0
    for file, text in offers:
        size = len(text.encode())
        if size > min(free, most):
            misses += 1
        elif text not in seen:
            seen.add(text)
            documents.append((file, text))
            free -= size
        if free <= (1 - ENOUGH) * budget or misses == PATIENCE:
            break
    return documents


def _is_sound(text: str, roots: Roots) -> bool:
    """Tell whether a text holds words, only valid letters, and no path of this machine."""
    # A short prefix, as /usr/local, tells nothing and stands in many a document.
    prefixes = [path for path in (Path(sys.prefix), Path(sys.base_prefix)) if len(path.parts) > 3]
    private = any(str(path) in text for path in (*roots, *prefixes))
    whole = text.encode(errors="ignore").decode() == text  # a docstring may spell a lone surrogate
    return bool(text.strip()) and whole and not private


def _repositories(roots: Roots) -> Iterator[tuple[Path, str, int, list[str]]]:
    """Yield root, repository, tier and file names of the library and of each distribution."""
    names: list[str] = []
    for folder, folders, files in os.walk(roots[0]):
        folders[:] = [name for name in folders if name not in SKIPPED]
        names += [Path(folder, name).relative_to(roots[0]).as_posix() for name in files]
    yield roots[0], LIBRARY, 0, names
    for tier, root in enumerate(roots[1:]):
        # A RECORD lists the files of its distribution: no walk over gigabytes of packages.
        for record in sorted(root.glob("*.dist-info/RECORD")):
            distribution = record.parent.name.split("-")[0]
            if distribution != OURSELVES:
                with record.open(encoding="utf-8", newline="") as lines:
                    names = [row[0] for row in csv.reader(lines) if row and row[0][:1] != "/"]
                yield root, distribution, tier, [n for n in names if "__pycache__" not in n]


def _list_files(roots: Roots) -> dict[str, list[_File]]:
    files: dict[str, list[_File]] = {domain: [] for domain in DOMAINS}
    for root, repository, tier, names in _repositories(roots):
        for name in names:
            if domain := _domain(name, repository == LIBRARY):
                shown = name.replace("../", "")  # data files stand beside lib: ../../../share/...
                files[domain].append(_File(root / name, shown, repository, len(names), tier))
    return {domain: _spread(entries) for domain, entries in files.items()}


def _domain(name: str, is_library: bool) -> str | None:
    last = name.rsplit("/", 1)[-1]
    if last.startswith(("LICENSE", "LICENCE", "COPYING")) and (is_library or ".dist-info/" in name):
        return "Licences"
    if ".dist-info/" in name:
        return "Readme" if last == "METADATA" else None
    if is_library and last.endswith((".txt", ".rst")):
        return None if "test" in name else "Readme"  # the tests' texts are tables
    return "Topics" if name == TOPICS else SUFFIXES.get(last.rpartition(".")[2])


def _spread(files: list[_File]) -> list[_File]:
    """Order files by hash; a repository of n files weighs sqrt(n), lest one fill a budget."""
    sizes = Counter((file.tier, file.repository) for file in files)
    met: Counter[tuple[int, str]] = Counter()
    rank: dict[_File, float] = {}
    for file in sorted(files, key=lambda file: xxh3_64_intdigest(file.name.encode())):
        met[file.tier, file.repository] += 1
        rank[file] = met[file.tier, file.repository] / sqrt(sizes[file.tier, file.repository])
    return sorted(rank, key=lambda file: (file.tier, rank[file]))


def _offers(domain: str, files: dict[str, list[_File]], used: set[Path]) -> Iterator[Document]:
    """Read the files of a domain in order, one after the other, as documents are asked for."""
    # Modules not taken as code yet come first.
    source = "python" if domain == "Docstrings" else domain
    # Docstrings come first from modules that are not among the code.
    for file in sorted(files[source], key=lambda file: file.path in used):
        try:
            if domain != "Topics" and file.path.stat().st_size > MAX_FILE_BYTES:
                continue
            text = file.path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue
        if domain == "Topics":
            yield from _topics(file, text)
        elif domain == "Docstrings":
            yield file, _docstrings(text)
        elif file.name.endswith("METADATA"):  # a description follows the headers
            yield file, text.replace("\r\n", "\n").partition("\n\n")[2]
        else:
            yield file, text


def _topics(file: _File, source: str) -> Iterator[Document]:
    """Yield the texts behind `help("assert")` and its like, which one literal holds."""
    topics: dict[str, str] = ast.literal_eval(source[source.index("{") :])
    for name in sorted(topics, key=lambda name: xxh3_64_intdigest(name.encode())):
        yield replace(file, name=f"pydoc_data/topics/{name}"), topics[name]


def _docstrings(source: str) -> str:
    """Return the docstrings of a module, its classes and functions, or "" where they are few."""
    # Parsing is slow: first a cheap look whether a quarter of the file stands in triple quotes.
    if sum(map(len, source.split('"""')[1::2])) < max(MIN_DOCSTRINGS, len(source) // 4):
        return ""
    try:
        with warnings.catch_warnings(action="ignore"):  # others' invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = (node for node in ast.walk(tree) if isinstance(node, kinds))
    text = "\n\n".join(filter(None, map(ast.get_docstring, owners)))
    return text if len(text) >= MIN_DOCSTRINGS else ""


def _write_prose(folder: Path, documents: list[Document], files: int) -> None:
    folder.mkdir(parents=True)
    for k in range(min(files, len(documents))):
        lines = b""
        for file, text in documents[k::files]:
            meta = {"redpajama_set_name": folder.name, "name": file.name, "source": file.repository}
            lines += orjson.dumps({"text": text, "meta": meta}, option=orjson.OPT_APPEND_NEWLINE)
        (folder / f"example_train_{k}.jsonl.zst").write_bytes(ZstdCompressor().compress(lines))


def _write_code(folder: Path, documents: list[Document], files: int) -> None:
    folder.mkdir(parents=True)
    numbered, parts = list(enumerate(documents)), min(files, len(documents))
    for k in range(parts):
        some = numbered[k::parts]
        columns = {
            "max_stars_repo_path": [file.name for _, (file, _) in some],
            "max_stars_repo_name": [file.repository for _, (file, _) in some],
            "max_stars_count": pa.array([file.siblings for _, (file, _) in some], pa.int64()),
            "id": [str(number) for number, _ in some],
            "content": [text for _, (_, text) in some],
        }
        pq.write_table(pa.table(columns), folder / f"train-{k:05d}-of-{parts:05d}.parquet")
