"""Encoders: text to ids by the fastest library whose ids are proven to be those of the reference.

There are three forms of encoding:

- `document`: a whole text; entries of the file that are special are not matched, so `<s>` in a text
  is ordinary text
- `piece`: text that continues something; nothing is put before it
- `matched`: all added tokens spelt in the text become their ids, as the file says

A library's tokenizer is derived from the user's tokenizer.json by `derived`. It is used for a form
only where it gives the ids of the reference on the canary texts, and for texts without characters
on which the two disagree (`unicode_tables`). The proof is kept in a cache on disk, by the file's
digest, the libraries' versions and the canary's.
"""

from __future__ import annotations

import logging
import os
import re
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, field
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError, RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.tokenizer import canary_texts as canary
from crystalmix.prep.tokenizer import unicode_tables
from crystalmix.prep.tokenizer.reference import by_reference

with imported_later(__name__):
    import gigatoken
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.tokenizer.reference import Encode, Form, Ids

Choice = Literal["auto", "gigatoken", "fastokens", "tokenizers"]

REFERENCE = "tokenizers"
PROOF_VERSION = 2
UNNAMED = "\ue000unnamed\ue000"  # no text gives it: no merge leads to it
# A fast library remembers words without end; it is loaded anew when the process is so large, and
# grew by so much since it was loaded last.
CHECK_CHARACTERS = 4 << 20
MOST_RESIDENT, LEAST_GROWTH = 520 << 20, 96 << 20


def derived(content: Json, form: Form) -> Json:
    """Return a tokenizer.json of one form, with nothing cut off and nothing left to chance."""
    model = {**content["model"], "dropout": None}
    plain: Json = {**content, "truncation": None, "padding": None, "model": model}
    if form == "matched":
        return plain
    tokens = [token for token in content["added_tokens"] if not token.get("special")]
    plain |= {"added_tokens": tokens, "post_processor": None}
    return plain if form == "document" else _without_dummy_prefix(plain)


def _without_dummy_prefix(content: Json) -> Json:
    """Put no space in front: Prepend goes, Metaspace and ByteLevel are set so."""
    twin = {**content}
    normalizer = content.get("normalizer")
    if normalizer and normalizer["type"] == "Prepend":
        twin["normalizer"] = None
    elif normalizer and normalizer["type"] == "Sequence":
        steps = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        twin["normalizer"] = {**normalizer, "normalizers": steps}
    first = content.get("pre_tokenizer")
    if first and "pretokenizers" in first:
        twin["pre_tokenizer"] = {
            **first,
            "pretokenizers": [_unprefixed(step) for step in first["pretokenizers"]],
        }
    elif first:
        twin["pre_tokenizer"] = _unprefixed(first)
    return twin


def is_prepended(content: Json) -> bool:
    """Tell whether a document is its text with a space in front, encoded as a piece.

    So it is of Llama's kind: `▁` is put before the text, and spaces are made `▁` after that. Where
    tokens are matched in texts, the space is put before what follows each of them, too.
    """
    if any(not token.get("special") for token in content["added_tokens"]):
        return False
    steps = (content.get("normalizer") or {}).get("normalizers", [])
    changes = [
        (step["type"], step.get("prepend") or step.get("pattern"), step.get("content"))
        for step in steps
    ]
    return changes == [("Prepend", "▁", None), ("Replace", {"String": " "}, "▁")]


def _unprefixed(step: Json) -> Json:
    changed: Json = {}
    if step["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    if step.get("add_prefix_space"):
        changed["add_prefix_space"] = False
    return {**step, **changed}


def _by_gigatoken(content: Json) -> Encode:
    # Document by document: its cache of words lives as long as the tokenizer.
    return gigatoken.Tokenizer.from_json(orjson.dumps(content)).backend.encode


def _by_fastokens(content: Json) -> Encode:
    import fastokens

    model = content["model"]
    if "" in model["vocab"]:  # fastokens takes a file with a piece without a name for another kind
        named = {name or UNNAMED: number for name, number in model["vocab"].items()}
        content = {**content, "model": {**model, "vocab": named}}
    encode: Any = fastokens.Tokenizer.from_json_str(orjson.dumps(content).decode())
    return lambda text: np.frombuffer(encode.encode_batch_flat([text])[0], dtype=np.uint32)


LIBRARIES: dict[str, Callable[[Json], Encode]] = {
    "gigatoken": _by_gigatoken,
    "fastokens": _by_fastokens,
}


@frozen
class Proof:
    """How a library compares with the reference on one form of one file.

    fault: why it can't be used, None where it can. apart: ranges of characters; texts that hold one
    are the reference's. entangled: whether special and other added tokens overlap; texts that spell
    a special token are the reference's then.
    """

    fault: str | None
    apart: unicode_tables.Ranges = field(default_factory=list[list[int]])
    entangled: bool = False


class Renewed:
    """A fast encoder that is loaded anew when its memory of words grew too large."""

    def __init__(self, load: Callable[[], Encode]) -> None:
        self._load = load
        self._renew()

    def __call__(self, text: str) -> Ids:
        """Encode a text."""
        self._left -= len(text)
        if self._left < 0:
            self._left = CHECK_CHARACTERS
            if resident() > max(MOST_RESIDENT, self._began + LEAST_GROWTH):
                self._renew()
        return self._encode(text)

    def _renew(self) -> None:
        self._encode = _no_encoder  # let go of the old one before the new one is made
        self._encode = self._load()
        self._left, self._began = CHECK_CHARACTERS, resident()


def _no_encoder(_text: str) -> Ids:
    raise RuntimeError("no encoder is loaded")


class Routed:
    """A fast encoder for the texts that it is proven for, the reference for all others."""

    def __init__(
        self, fast: Encode, slow: Callable[[], Encode], proof: Proof, specials: Sequence[str]
    ) -> None:
        self._fast, self._load, self._ranges = fast, slow, proof.apart
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
        self._spelt = re.compile(names) if proof.entangled else None

    def __call__(self, text: str) -> Ids:
        """Encode a text."""
        if self._ranges and not text.isascii():
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            if self._apart[codes].any():
                return self._slow(text)
        if self._spelt and self._spelt.search(text):
            return self._slow(text)
        return self._fast(text)

    @cached_property
    def _apart(self) -> NDArray[np.bool_]:
        return unicode_tables.table(self._ranges)

    @cached_property
    def _slow(self) -> Encode:
        return self._load()


def resident() -> int:
    """Return the bytes of memory that this process holds (its peak where the system hides them)."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def encoder(content: Json, raw: bytes, form: Form, choice: Choice) -> tuple[str, Encode]:
    """Return the library that serves a form, and its encoder.

    auto: gigatoken, then fastokens if it is installed, then the reference; what is no BPE goes to
    the reference. Where no fast library takes the file and gives the reference's ids, a warning
    says why and the reference is used. content: what the bytes of the file (raw) hold. Raises
    RecipeError where the chosen library is not installed.
    """
    faults: list[str] = []
    for name in _candidates(choice) if content["model"].get("type", "BPE") == "BPE" else ():
        proof = _proven(content, raw, form, name)
        if proof.fault is None:
            fast = Renewed(lambda name=name: LIBRARIES[name](derived(content, form)))
            if not proof.apart and not proof.entangled:
                return name, fast
            specials = _names(content, special=True)
            return name, Routed(fast, lambda: by_reference(raw, form), proof, specials)
        faults.append(f"{name} {proof.fault}")
    if faults:
        log = logging.getLogger("crystalmix")
        log.warning("%s: using tokenizers, which is slower", "; ".join(faults))
    return REFERENCE, by_reference(raw, form)


def _names(content: Json, *, special: bool) -> list[str]:
    tokens = content["added_tokens"]
    return [str(token["content"]) for token in tokens if bool(token.get("special")) == special]


def _candidates(choice: Choice) -> list[str]:
    if choice == REFERENCE:
        return []
    if choice == "auto":
        return ["gigatoken", *(["fastokens"] if find_spec("fastokens") else [])]
    if find_spec(choice) is None:
        raise RecipeError(
            f"tokenizer.backend: {choice} is not installed; "
            f"pip install 'crystalmix[{choice}]', or leave it at auto"
        )
    return [choice]


def _proven(content: Json, raw: bytes, form: Form, name: str) -> Proof:
    """Return how a library compares with the reference on a file: from the cache, or tried now."""
    key = {
        "tokenizer": sha256(raw).hexdigest(),
        "form": form,
        "versions": {library: _version(library) for library in (name, REFERENCE)},
        "canary": canary.VERSION,
        "proof": PROOF_VERSION,
        "tables": unicode_tables.VERSION,
        "unicode": unicode_tables.unicodedata.unidata_version,
    }
    proof = _kept_proof(key)
    if proof is not None:
        return proof
    proof = _compare(content, raw, form, name)
    remember(key, asdict(proof))
    return proof


def _compare(content: Json, raw: bytes, form: Form, name: str) -> Proof:
    specials, others = (_names(content, special=special) for special in (True, False))
    model = derived(content, form)
    try:
        apart = _apart(content, model, name)
        if apart is None:
            return Proof("differs from tokenizers on too many characters")
        proof = Proof(None, apart, form != "matched" and _overlap(specials, others))
        slow = by_reference(raw, form)
        encode = Routed(LIBRARIES[name](model), lambda: slow, proof, specials)
        for text in canary.texts([*specials, *others]):
            if encode(text).tolist() != slow(text).tolist():
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                return Proof(f"differs from tokenizers on {shown!r}")
    except Exception as error:  # noqa: BLE001  any failure of the fast path means: do without it
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        return Proof(f"can't take this tokenizer ({brief})")
    return proof


def _apart(content: Json, model: Json, name: str) -> unicode_tables.Ranges | None:
    """Return the characters on which a library and the reference disagree; None: too many."""
    if not unicode_tables.asked_of(content):
        return []
    tried = unicode_tables.probe(model)
    own = tried["model"] is model["model"]  # else one that all files share
    key = {
        "steps": unicode_tables.steps_of(model),
        "tokens": tried["added_tokens"],
        "model": sha256(canonical(model["model"])).hexdigest() if own else None,
        "versions": {library: _version(library) for library in (name, REFERENCE)},
        "tables": unicode_tables.VERSION,
        "unicode": unicode_tables.unicodedata.unidata_version,
    }
    proof = _kept_proof(key)
    if proof is None:
        fast, slow = LIBRARIES[name](tried), by_reference(orjson.dumps(tried), "matched")
        ranges = unicode_tables.disagreeing(
            tried, lambda text: fast(text).tolist() == slow(text).tolist()
        )
        proof = Proof("too many" if ranges is None else None, ranges or [])
        remember(key, asdict(proof))
    return None if proof.fault else proof.apart


def _overlap(specials: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether a special token's text may share characters with another token's in a text.

    >>> _overlap(["<s>"], ["  "]), _overlap(["<s>"], ["s>"]), _overlap(["<s>"], ["><"])
    (False, True, True)
    """
    heads = {name[:i] for name in others for i in range(1, len(name) + 1)}
    tails = {name[-i:] for name in others for i in range(1, len(name) + 1)}
    inner = {*others}
    for name in specials:
        size = len(name)
        parts = {name[i:j] for i in range(size) for j in range(i + 1, size + 1)}
        if parts & inner or any(name in other for other in others):
            return True
        if any(name[i:] in heads or name[:i] in tails for i in range(1, size)):
            return True
    return False


def _place(key: Json) -> Path:
    return _cache() / f"{sha256(canonical(key)).hexdigest()}.json"


def remember(key: Json, content: Json) -> None:
    """Keep on disk what was found out about a tokenizer, under what it follows from."""
    place = _place(key)
    try:
        write_atomic(place, canonical({"key": key, **content}))
    except OSError as error:
        log = logging.getLogger("crystalmix")
        log.info("%s: can't keep the proof of a tokenizer (%s)", place, error.strerror)


def remembered(key: Json) -> Json | None:
    """Return what was kept; what is damaged or of another key is as nothing."""
    try:
        content = read_json(_place(key))
    except (DamageError, OSError):
        return None
    return content if content.get("key") == key else None


def _kept_proof(key: Json) -> Proof | None:
    content = remembered(key) or {}
    fault, apart, entangled = (content.get(name) for name in ("fault", "apart", "entangled"))
    sound = "fault" in content and isinstance(fault, str | None)
    if not sound or not isinstance(apart, list) or not isinstance(entangled, bool):
        return None
    return Proof(fault, apart, entangled)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "crystalmix" / "proofs"


def versions() -> dict[str, str]:
    """Return the version of each library that may encode, `unknown` where it is not installed."""
    return {library: _version(library) for library in (*LIBRARIES, REFERENCE)}


def _version(library: str) -> str:
    """Return the version of an installed library, by the name of its metadata's folder.

    That is where `importlib.metadata` has it from; its import takes as long as the rest of a
    tokenizer's look at the cache, and is left to what has no such folder.
    """
    spec = find_spec(library)
    if spec is not None and spec.origin is not None:
        folders = [*Path(spec.origin).parents[1].glob(f"{library}-*.dist-info")]
        if len(folders) == 1:
            return folders[0].stem.partition("-")[2]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
