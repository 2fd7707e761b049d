"""What the original's FIM worked with: its tokenizer, and today's library around the same file."""

from functools import lru_cache

import orjson
import tokenizers

from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings
from helpers.materials import shared


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Return the tokenizer of the original's FIM: llama's with 18 special tokens."""
    base = orjson.loads(shared("tokenizer", "llama-32000.json").read_bytes())
    late = orjson.loads(shared("tokenizer", "crystal-32022.json").read_bytes())
    base["added_tokens"] += [
        {**entry, "content": entry["content"].replace("|", "")}  # as the script spells them
        for entry in late["added_tokens"]
        if 32000 <= entry["id"] < 32018
    ]
    return Tokenizer(TokenizerSettings("here"), orjson.dumps(base))


@lru_cache(maxsize=1)
def library() -> tokenizers.Tokenizer:
    """Return the same tokenizer as `tokenizers` loads it."""
    return tokenizers.Tokenizer.from_str(tokenizer().raw.decode())
