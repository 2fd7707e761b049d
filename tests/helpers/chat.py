"""What the tests of chat share: a tokenizer with tokens of roles, a recipe, conversations."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from hypothesis import strategies as st
from ruamel.yaml import YAML

from crystalmix.prep.documents.conversation_text import Message
from crystalmix.prep.runtime.types import Json
from helpers.materials import SHARED, small, texts

NAMES = ("<|sys_start|>", "<|sys_end|>", "<|im_start|>", "<|im_end|>")
SYSTEM = (
    "You are a helpful and intelligent assistant. "
    "Follow the instructions and answer the questions as accurately as possible."
)
MORE = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def with_tokens(raw: bytes, names: tuple[str, ...]) -> bytes:
    """Return a tokenizer.json with special tokens added behind its vocabulary."""
    content: Json = orjson.loads(raw)
    held = {token["content"] for token in content["added_tokens"]}
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for name in names:
        if name not in held:
            ids.append(max(ids) + 1)
            entry = {"id": ids[-1], "content": name, "special": True}
            content["added_tokens"].append({**entry, **usual})
    return orjson.dumps(content)


@lru_cache(maxsize=1)
def chatty_llama() -> bytes:
    """Return Llama 2's tokenizer with four tokens, where it is here, else a small one."""
    path = SHARED / "tokenizer" / "llama-32000.json"
    return with_tokens(path.read_bytes() if path.exists() else small().raw, NAMES)


@lru_cache(maxsize=1)
def chatty_small() -> bytes:
    """Return a small tokenizer with the tokens of every bundled template."""
    return with_tokens(small().raw, (*NAMES, *MORE))


def recipe_of(folder: Path, chat: Json, rows: Json | None = None, **source: Any) -> Path:
    """Write a recipe of one domain of chat over the files `talk*` of a folder."""
    content = {
        "name": "talk",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": {"msl": 64},
        "sources": {"talk": {"files": ["talk*"], "format": "chat", **source}},
        "domains": {
            "talk": {"sources": ["talk"], "shuffle": False, "rows": rows or {}, "chat": chat}
        },
        "phases": {"chat": {"batch": 1, "parts": [{"domain": "talk", "epochs": 1}]}},
    }
    path = folder / "recipe.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="rt").dump(content, file)
    return path


conversations = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "assistant"]),
        st.one_of(texts, st.sampled_from([*NAMES, "[INST] x", "a <|im_end|> b", ""])),
        st.sampled_from([None, None, None, True, False]),
    ),
    min_size=1,
    max_size=7,
)
