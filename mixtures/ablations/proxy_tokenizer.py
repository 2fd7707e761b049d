"""Vocabulary: a small tokenizer for proxies, trained on the documents that they will read.

With a vocabulary of 32,000 the embedding of a proxy would be ten times its layers. Losses are
compared between proxies of one tokenizer only, and told in bits per byte too.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents import source as sources
from crystalmix.prep.readers.batch import TEXT
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.tokenizer import train_bpe as bpe

CHARACTERS = 1_000_000  # of each domain
LONGEST = 20_000  # characters of one document


def train(recipe: Recipe, root: Path, domains: Sequence[str], vocab: int, out: Path) -> Path:
    """Train a tokenizer on the first documents of each domain, unless `out` is there already."""
    if not out.exists():
        texts = chain.from_iterable(_texts(recipe, root, domain) for domain in domains)
        write_atomic(out, bpe.train(texts, vocab))
    return out


def _texts(recipe: Recipe, root: Path, domain: str) -> Iterator[str]:
    """Yield texts of a domain, as many characters of each of its sources."""
    names = recipe.domains[domain].sources
    for name in names:
        left = CHARACTERS // len(names)
        source = recipe.sources[name]
        for block in sources.blocks(source, root):
            for batch in sources.read(source, root, block):
                for text in batch.table[TEXT].to_pylist():
                    if text and left > 0:
                        yield text[:LONGEST]
                        left -= len(text[:LONGEST])
            if left <= 0:
                break
        if left == CHARACTERS // len(names):
            raise InputError(f"source {name}: holds no text to train a tokenizer on")
