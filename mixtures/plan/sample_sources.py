"""Estimates: about how many tokens a domain will have, from a few of its raw files.

The smallest files of each source are scanned whole: what their documents keep of each raw byte
stands for all files. The first megabytes of text are encoded: their bytes a token stand for all.
Duplicates and lists are not looked for, so a domain may come out smaller.
"""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crystalmix.mixtures.build import drop_report
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents.scan import scan
from crystalmix.prep.documents.source import Source, blocks, identity, listing, read
from crystalmix.prep.readers.batch import TEXT
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, load

FILES = 2
SAMPLE_CHARACTERS = 4_000_000


def sampled(recipe: Recipe, root: Path, known: Collection[str] = ()) -> dict[str, int]:
    """Return the tokens that each domain is estimated to have; hub datasets are left out.

    known: domains that are left out, too.

    Raises InputError where raw files are missing or broken.
    """
    tokenizer = load(recipe.tokenizer)
    around = recipe.rows.bos + recipe.rows.eos
    local = {name: source for name, source in recipe.sources.items() if source.hub is None}
    domains = {name: each for name, each in recipe.domains.items() if name not in known}
    drawn = {name for domain in domains.values() for name in domain.sources}
    found: dict[str, float] = {}
    for name in (name for name in local if name in drawn):
        drop_report.tell_unread(recipe, root, local[name], listing(local[name], root))
        found[name] = _tokens(local[name], root, tokenizer, around)
    estimates: dict[str, int] = {}
    for name, domain in domains.items():
        if all(source in found for source in domain.sources):
            side = {"train": 1 - recipe.valid, "valid": recipe.valid, None: 1.0}[domain.split]
            total = sum(found[source] for source in domain.sources)
            copies = domain.epochs if domain.upsample is None else domain.upsample.mean
            estimates[name] = round(total * side * copies)
    return estimates


def _tokens(source: Source, root: Path, tokenizer: Tokenizer, around: int) -> float:
    """Return the tokens of a source's documents; around: control ids put around each."""
    names = blocks(source, root)
    sizes = {block: identity(source, root, block).bytes for block in names}
    chosen = sorted((b for b in names if sizes[b]), key=lambda b: (sizes[b], b))[:FILES]
    with TemporaryDirectory(prefix="crystalmix-") as scratch:
        out = Path(scratch) / DOCUMENTS
        accounts = [scan(source, root, block, out) for block in chosen]
    drop_report.tell_sampled(source, accounts)
    raw = sum(sizes[block] for block in chosen)
    scale = sum(sizes.values()) / max(1, raw) * (source.select.sample or 1.0)
    count = sum(account["documents"] for account in accounts) * scale
    text = sum(account["bytes"] for account in accounts) * scale
    kept = min(1.0, (source.select.limit or count) / max(1.0, count))
    rate = _tokens_a_byte(source, root, chosen, tokenizer)
    return kept * (text * rate + count * around)


def _tokens_a_byte(source: Source, root: Path, blocks: list[str], tokenizer: Tokenizer) -> float:
    """Encode the first texts of some files; return how many tokens a byte has."""
    tokens = size = 0
    for block in blocks:
        for batch in read(source, root, block):
            column: Any = batch.table[TEXT]
            for text in column.to_pylist():
                if text and size < SAMPLE_CHARACTERS:
                    tokens += len(tokenizer.encode(text))
                    size += len(text.encode())
            if size >= SAMPLE_CHARACTERS:
                return tokens / size
    return tokens / max(1, size)
