"""Tokenizers: any Hugging Face tokenizer.json, encoded fast and proven equal to the reference.

`tokenizers` loads, trains and is the reference; `gigatoken` does the work where it gives the same
ids on the canary documents, else the reference does. Strings such as `<s>` inside a text are
ordinary text: control ids only ever come from the packer and from FIM.

Text pieces that continue a document (FIM middles and suffixes) are encoded by a twin without the
dummy space that Llama-style tokenizers put in front of a text, so that pieces rejoin byte for byte.
"""

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import gigatoken
import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from prep.canary import DOCUMENTS
from prep.errors import InputError, RecipeError

Ids = NDArray[np.uint32]
Json = dict[str, Any]

# Spellings met in public tokenizers, tried in this order where the recipe names none.
KNOWN = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>"),
    "pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<pad>"),
}


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer, and which of its added tokens play which part (None: by known spelling)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    path: str
    bos: str | None = None
    eos: str | None = None
    fim_prefix: str | None = None
    fim_middle: str | None = None
    fim_suffix: str | None = None
    pad: str | None = None


class Tokenizer:
    """Encode documents and pieces of documents to ids, and ids back to text."""

    def __init__(self, settings: TokenizerSettings, raw: bytes) -> None:
        self.settings, self.raw = settings, raw
        self.json: Json = orjson.loads(raw)
        self.fingerprint = sha256(raw).hexdigest()
        if self.json["model"].get("type", "BPE") != "BPE":
            raise ValueError(f"its model is {self.json['model']['type']}")
        self._added = {entry["content"]: int(entry["id"]) for entry in self.json["added_tokens"]}
        ids = [*self.json["model"]["vocab"].values(), *self._added.values()]
        self.vocab = int(max(ids)) + 1
        self.special = {part: self._special(part) for part in KNOWN}
        self.controls = np.array(sorted(set(self._added.values())), dtype=np.uint32)
        plain, twin = _plain(self.json), _without_dummy_prefix(_plain(self.json))
        self.dummy_prefix = plain != twin
        self._reference = [_reference(plain), _reference(twin)]
        self.backend, self._encoders = _fastest([plain, twin], self._reference)
        self._refuse_controls((*DOCUMENTS, *self._added))
        self.canary = sha256(
            b"".join(self.encode(text).tobytes() for text in DOCUMENTS)
        ).hexdigest()

    def encode(self, text: str) -> Ids:
        """Encode a whole document, without BOS or EOS."""
        return self._encode(0, text)

    def encode_piece(self, text: str) -> Ids:
        """Encode text that continues something: no dummy space is put before it."""
        return self._encode(1, text)

    def encode_matched(self, text: str) -> Ids:
        """Encode as the file says: added tokens spelt in the text become their ids."""
        backend, reference, fast = self._matching
        if backend == "gigatoken":
            return fast[0].encode(text)
        return np.array(reference[0].encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    @cached_property
    def _matching(self) -> tuple[str, list[tokenizers.Tokenizer], list[gigatoken.Tokenizer]]:
        model = _fixed(self.json)
        reference = [_reference(model)]
        backend, fast = _fastest([model], reference, tuple(self._added))
        return backend, reference, fast

    def _encode(self, which: int, text: str) -> Ids:
        if self.backend == "gigatoken":
            return np.asarray(self._encoders[which].encode(text), dtype=np.uint32)
        ids = self._reference[which].encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint32)

    def _refuse_controls(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            found = np.intersect1d(self.encode(text), self.controls)
            if len(found):
                raise InputError(
                    f"{self.settings.path}: gives the control id {found[0]} for the text {text!r}; "
                    "use a tokenizer that spells every text: byte-level, or with byte fallback"
                )

    def id_of(self, part: str) -> int:
        """Return the id of `bos`, `eos`, `fim_prefix`, ...; RecipeError if there is none."""
        found = self.special[part]
        if found is None:
            raise RecipeError(
                f"{self.settings.path}: has no {part} token "
                f"(looked for {', '.join(KNOWN[part])}); name it as tokenizer.{part}"
            )
        return found

    @property
    def pad(self) -> int:
        """The id that fills an incomplete row: the pad token, else EOS, else 0."""
        for part in ("pad", "eos"):
            found = self.special[part]
            if found is not None:
                return found
        return 0

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """The bytes each id stands for, a leading `▁` being a space; specials as spelt."""
        table = [b""] * self.vocab
        unmap = _byte_level_alphabet() if _is_byte_level(self.json) else None
        for piece, number in self.json["model"]["vocab"].items():
            table[number] = _piece_bytes(piece, unmap)
        for content, number in self._added.items():
            table[number] = content.encode()
        return table

    @cached_property
    def is_text(self) -> NDArray[np.bool_]:
        """Whether the bytes of each id are whole characters: (vocab,)."""
        return np.array([_is_utf8(data) for data in self.bytes_of])

    def decode(self, ids: Iterable[int], *, whole: bool = True) -> str:
        """Return the text of ids; `whole` drops the dummy space before a document."""
        data = b"".join(self.bytes_of[i] for i in ids)
        if whole and self.dummy_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def _special(self, part: str) -> int | None:
        asked: str | None = getattr(self.settings, part)
        if asked is not None and asked not in self._added:
            raise RecipeError(
                f"tokenizer.{part}: {asked!r} is no added token of {self.settings.path} "
                f"(it has {', '.join(sorted(self._added)[:8])} ...)"
            )
        names = KNOWN[part] if asked is None else (asked,)
        return next((self._added[name] for name in names if name in self._added), None)


def load(settings: TokenizerSettings) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json, a folder with one, or a hub id (`owner/name`)."""
    path = Path(settings.path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.exists():
        raw = path.read_bytes()
    elif settings.path.count("/") == 1 and not settings.path.endswith(".json"):
        raw = _from_hub(settings.path)
    else:
        raise InputError(f"{path}: no such tokenizer file; give a tokenizer.json or a hub id")
    try:
        return _loaded(settings, raw)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no tokenizer.json of BPE kind ({error})") from None


@lru_cache(maxsize=8)
def _loaded(settings: TokenizerSettings, raw: bytes) -> Tokenizer:
    return Tokenizer(settings, raw)


@lru_cache(maxsize=8)
def _from_hub(name: str) -> bytes:
    try:
        return tokenizers.Tokenizer.from_pretrained(name).to_str().encode()
    except Exception as error:  # noqa: BLE001  the hub client raises its own zoo of exceptions
        first = str(error).splitlines()[0]
        raise InputError(f"tokenizer {name}: not a file, and the hub says: {first}") from None


def _plain(model: Json) -> Json:
    """The same model with nothing added, matched, cut off or left to chance: text is text."""
    return {**_fixed(model), "added_tokens": [], "post_processor": None}


def _fixed(model: Json) -> Json:
    """The same model with nothing cut off or left to chance."""
    fixed = {"truncation": None, "padding": None, "model": {**model["model"], "dropout": None}}
    return {**copy.deepcopy(model), **fixed}


def _without_dummy_prefix(model: Json) -> Json:
    """The twin that puts no space in front: Prepend, Metaspace and ByteLevel are told so."""
    twin = copy.deepcopy(model)
    normalizer = twin.get("normalizer")
    if normalizer and normalizer["type"] == "Prepend":
        twin["normalizer"] = None
    elif normalizer and normalizer["type"] == "Sequence":
        kept = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        twin["normalizer"] = {**normalizer, "normalizers": kept}
    first = twin.get("pre_tokenizer") or {}
    for step in first.get("pretokenizers", [first]):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
        if step.get("add_prefix_space"):
            step["add_prefix_space"] = False
    return twin


def _reference(model: Json) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(orjson.dumps(model).decode())
    except Exception as error:  # noqa: BLE001  the library raises nothing more precise
        raise ValueError(str(error)) from None


def _fastest(
    models: list[Json], reference: list[tokenizers.Tokenizer], spelt: tuple[str, ...] = ()
) -> tuple[str, list[gigatoken.Tokenizer]]:
    """Return gigatoken's encoders if they match the reference on every canary document."""
    log = logging.getLogger("crystalmix")
    around = [form.format(name) for name in spelt for form in ("{}", " {} ", "a{0}b{0}{0}", "\n{}")]
    try:
        fast = [gigatoken.Tokenizer.from_json(orjson.dumps(model)) for model in models]
        for one, other in zip(fast, reference, strict=True):
            for text in (*DOCUMENTS, *around):
                if one.encode(text).tolist() != other.encode(text, add_special_tokens=False).ids:
                    log.warning("gigatoken differs from tokenizers on %r: using tokenizers", text)
                    return "tokenizers", []
    except Exception as error:  # noqa: BLE001  any failure of the fast path means: do without it
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("gigatoken can't load this tokenizer (%s): using tokenizers, slower", brief)
        return "tokenizers", []
    return "gigatoken", fast


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_byte_level(model: Json) -> bool:
    decoder = model.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _piece_bytes(piece: str, unmap: dict[str, int] | None) -> bytes:
    if unmap is not None:
        return bytes(unmap[c] for c in piece) if all(c in unmap for c in piece) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes as they are, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
