"""Encoders: text to ids by the fastest library whose ids are proven to be those of `tokenizers`.

Every library's tokenizer is derived from the same tokenizer.json by `derived`, in three forms:

- `document`: a whole text; nothing is matched, so `<s>` in a text is ordinary text
- `piece`: text that continues something; nothing is put before it
- `matched`: added tokens spelt in the text become their ids, as the file says

A library is used for a form only where it gives the reference's ids on the canary texts. The proof
is kept in a cache on disk, by the file's digest, the libraries' versions and the canary's.
"""

import logging
import os
import resource
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import gigatoken
import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError, RecipeError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer import canary_texts as canary

Ids = NDArray[np.uint32]
Encode = Callable[[str], Ids]
Form = Literal["document", "piece", "matched"]
Choice = Literal["auto", "gigatoken", "fastokens", "tokenizers"]

REFERENCE = "tokenizers"
PROOF_VERSION = 1
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
    plain |= {"added_tokens": [], "post_processor": None}
    return plain if form == "document" else _without_dummy_prefix(plain)


def _without_dummy_prefix(content: Json) -> Json:
    """Put no space in front: Prepend, Metaspace and ByteLevel are told so."""
    twin = {**content}
    normalizer = content.get("normalizer")
    if normalizer and normalizer["type"] == "Prepend":
        twin["normalizer"] = None
    elif normalizer and normalizer["type"] == "Sequence":
        kept = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        twin["normalizer"] = {**normalizer, "normalizers": kept}
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

    So it is of Llama's kind: `▁` is put before the text, and spaces are made `▁` after that.
    """
    steps = (content.get("normalizer") or {}).get("normalizers", [])
    told = [
        (step["type"], step.get("prepend") or step.get("pattern"), step.get("content"))
        for step in steps
    ]
    return told == [("Prepend", "▁", None), ("Replace", {"String": " "}, "▁")]


def _unprefixed(step: Json) -> Json:
    told: Json = {}
    if step["type"] == "Metaspace":
        told["prepend_scheme"] = "never"
    if step.get("add_prefix_space"):
        told["add_prefix_space"] = False
    return {**step, **told}


def reference(content: Json) -> tokenizers.Tokenizer:
    """Load a tokenizer.json with `tokenizers`; ValueError says why it can't be."""
    try:
        return tokenizers.Tokenizer.from_str(orjson.dumps(content).decode())
    except Exception as error:  # noqa: BLE001  the library raises nothing more precise
        raise ValueError(str(error)) from None


def _by_tokenizers(content: Json) -> Encode:
    encode = reference(content).encode
    return lambda text: np.array(encode(text, add_special_tokens=False).ids, dtype=np.uint32)


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
    REFERENCE: _by_tokenizers,
}


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


def resident() -> int:
    """Return the bytes of memory that this process holds (its peak where that is not told)."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def encoder(content: Json, fingerprint: str, form: Form, asked: Choice) -> tuple[str, Encode]:
    """Return the library that serves a form, and its encoder.

    auto: gigatoken, then fastokens if it is installed, then the reference. Where no fast library
    takes the file and gives the reference's ids, a warning says why and the reference is used.
    fingerprint: sha256 of the file. Raises RecipeError where the asked library is not installed.
    """
    model = derived(content, form)
    faults: list[str] = []
    for name in _candidates(asked):
        fault = _proven(content, model, fingerprint, form, name)
        if fault is None:
            return name, Renewed(lambda name=name: LIBRARIES[name](model))
        faults.append(f"{name} {fault}")
    if faults:
        log = logging.getLogger("crystalmix")
        log.warning("%s: using tokenizers, which is slower", "; ".join(faults))
    return REFERENCE, LIBRARIES[REFERENCE](model)


def _candidates(asked: Choice) -> list[str]:
    if asked == REFERENCE:
        return []
    if asked == "auto":
        return ["gigatoken", *(["fastokens"] if find_spec("fastokens") else [])]
    if find_spec(asked) is None:
        raise RecipeError(
            f"tokenizer.backend: {asked} is not installed; "
            f"pip install 'crystalmix[{asked}]', or leave it at auto"
        )
    return [asked]


def _proven(content: Json, model: Json, fingerprint: str, form: Form, name: str) -> str | None:
    """Return how a library differs from the reference on the canary texts (None: it does not)."""
    key = {
        "tokenizer": fingerprint,
        "form": form,
        "versions": {library: _version(library) for library in (name, REFERENCE)},
        "canary": canary.VERSION,
        "proof": PROOF_VERSION,
    }
    place = _cache() / f"{sha256(canonical(key)).hexdigest()}.json"
    found = _remembered(place, key)
    if found is not None:
        return found["fault"]
    fault = _compare(content, model, name)
    try:
        write_atomic(place, canonical({"key": key, "fault": fault}))
    except OSError as error:
        log = logging.getLogger("crystalmix")
        log.info("%s: can't keep the proof of a tokenizer (%s)", place, error.strerror)
    return fault


def _compare(content: Json, model: Json, name: str) -> str | None:
    spelt = [str(token["content"]) for token in content["added_tokens"]]
    wanted = reference(model)
    try:
        encode = LIBRARIES[name](model)
        for text in canary.texts(spelt):
            if encode(text).tolist() != wanted.encode(text, add_special_tokens=False).ids:
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                return f"differs from tokenizers on {shown!r}"
    except Exception as error:  # noqa: BLE001  any failure of the fast path means: do without it
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        return f"can't take this tokenizer ({brief})"
    return None


def _remembered(place: Path, key: Json) -> Json | None:
    """Return a proof that was kept; one that is damaged or of another key is as none."""
    try:
        found = read_json(place)
    except (DamageError, OSError):
        return None
    sound = found.get("key") == key and isinstance(found.get("fault", 0), str | None)
    return found if sound else None


def _cache() -> Path:
    asked = os.environ.get("XDG_CACHE_HOME")
    return (Path(asked) if asked else Path("~/.cache").expanduser()) / "crystalmix" / "proofs"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
