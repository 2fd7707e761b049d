"""Findings: what a few texts show of a tokenizer, kept on disk as the proofs of its encoder are."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.tokenizer import backends, canary_texts, unicode_tables

VERSION = 1


@frozen
class Findings:
    """What texts show of a tokenizer.

    given: ids of special tokens that texts give. canary: digest of the ids of the canary documents.
    notes: what a user should know before texts are given to it.
    """

    given: tuple[int, ...]
    canary: str
    notes: tuple[str, ...] = ()


def key_of(settings: object, raw: bytes) -> Json:
    """Return what findings follow from: settings (a dataclass), file, texts and libraries."""
    settings_: Any = settings
    return {
        "findings": VERSION,
        "settings": asdict(settings_),
        "tokenizer": sha256(raw).hexdigest(),
        "versions": backends.versions(),
        "canary": canary_texts.VERSION,
        "unicode": unicode_tables.unicodedata.unidata_version,
    }


def remember(key: Json, findings: Findings) -> None:
    """Keep findings; nothing happens where that can't be done."""
    backends.remember(key, asdict(findings))


def remembered(key: Json) -> Findings | None:
    """Return findings that were kept, None where there are none of this key."""
    content = backends.remembered(key) or {}
    given, canary, notes = (content.get(name) for name in ("given", "canary", "notes"))
    if not isinstance(given, list) or not isinstance(canary, str) or not isinstance(notes, list):
        return None
    return Findings(tuple(map(int, given)), canary, tuple(map(str, notes)))
