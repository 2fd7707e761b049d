"""Tokenizers: any Hugging Face tokenizer.json, encoded fast and proven equal to the reference.

`encoders` finds the fastest library whose ids are those of `tokenizers`. Strings such as `<s>`
inside a text are ordinary text: control ids only ever come from the packer, from FIM and from
metadata that a source asks for.

Text pieces that continue a document (FIM middles and suffixes) are encoded by a twin without the
dummy space that Llama-style tokenizers put in front of a text, so that pieces rejoin byte for byte.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.tokenizer.backends import (
    Choice,
    Encode,
    Form,
    Ids,
    Json,
    derived,
    encoder,
    is_prepended,
    reference,
)
from crystalmix.prep.tokenizer.canary_texts import DOCUMENTS
from crystalmix.prep.tokenizer.long_texts import WINDOW, LongTexts, way_of
from crystalmix.prep.tokenizer.special_spellings import Literals, bytes_of, is_text

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
    """Which tokenizer, and which of its added tokens play which part (None: by known spelling).

    backend: the library that encodes; auto is the fastest that is proven. verify_every: one in so
    many documents, chosen by digest, is encoded by the reference too (0: none).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    path: str
    bos: str | None = None
    eos: str | None = None
    fim_prefix: str | None = None
    fim_middle: str | None = None
    fim_suffix: str | None = None
    pad: str | None = None
    backend: Choice = "auto"
    verify_every: int = 0

    def __post_init__(self) -> None:
        if self.verify_every < 0:
            raise ValueError(f"verify_every: must be 0 (never) or more, got {self.verify_every}")


class Tokenizer:
    """Encode documents and pieces of documents to ids, and ids back to text."""

    def __init__(self, settings: TokenizerSettings, raw: bytes) -> None:
        self.settings, self.raw = settings, raw
        held: object = orjson.loads(raw)
        if not isinstance(held, dict):
            raise TypeError(f"it holds a {type(held).__name__}, not an object")
        self.json: Json = held
        self.fingerprint = sha256(raw).hexdigest()
        if self.json["model"].get("type", "BPE") != "BPE":
            raise ValueError(f"its model is {self.json['model']['type']}")
        self.added = {entry["content"]: int(entry["id"]) for entry in self.json["added_tokens"]}
        ids = [*self.json["model"]["vocab"].values(), *self.added.values()]
        self.vocab = int(max(ids)) + 1
        self.literals = Literals(self.added)
        self.special = {part: self._special(part) for part in KNOWN}
        self.controls = np.array(sorted(set(self.added.values())), dtype=np.uint32)
        self.dummy_prefix = derived(self.json, "document") != derived(self.json, "piece")
        self.long_texts = LongTexts(way_of(self.json), lambda: self.bytes_of)
        self.backend = ""
        self._references: dict[Form, tokenizers.Tokenizer] = {}
        self._refuse_controls((*DOCUMENTS, *self.added))
        self.canary = sha256(
            b"".join(self.encode(text).tobytes() for text in DOCUMENTS)
        ).hexdigest()

    def encode(self, text: str) -> Ids:
        """Encode a whole document, without BOS or EOS: (n,) uint32."""
        if len(text) <= WINDOW:
            return self._document(text)
        return self.long_texts.encode(text, self._document, self._piece)

    def encode_piece(self, text: str) -> Ids:
        """Encode text that continues something: no dummy space is put before it."""
        if len(text) <= WINDOW:
            return self._piece(text)
        return self.long_texts.encode(text, self._piece, self._piece)

    def encode_matched(self, text: str) -> Ids:
        """Encode as the file says: added tokens spelt in the text become their ids."""
        if self._spelt_as_is and not self.literals.within(text):
            return self.encode(text)
        return self._matched(text)

    @cached_property
    def base(self) -> "Tokenizer":
        """The tokenizer before tokens were added to its vocabulary: itself, if none were."""
        vocabulary, added = self.json["model"]["vocab"], self.json["added_tokens"]
        kept = [token for token in added if token["content"] in vocabulary]
        if len(kept) == len(added):
            return self
        raw = orjson.dumps({**self.json, "added_tokens": kept, "post_processor": None})
        return Tokenizer(TokenizerSettings(self.settings.path, backend=self.settings.backend), raw)

    @cached_property
    def _document(self) -> Encode:
        piece = self._piece
        if not self.dummy_prefix:
            return piece
        if is_prepended(self.json):  # one encoder, and one memory of words, for both
            return lambda text: piece(f" {text}" if text else "")
        return self._encoder("document")

    @cached_property
    def _piece(self) -> Encode:
        return self._encoder("piece")

    @cached_property
    def _matched(self) -> Encode:
        return self._encoder("matched")

    @cached_property
    def _spelt_as_is(self) -> bool:
        """Whether a text that holds no added token's spelling can't give one's id."""
        normalizer: Json = self.json.get("normalizer") or {"type": "Prepend"}
        steps: list[Json] = normalizer.get("normalizers", [normalizer])
        kinds = {step["type"] for step in steps}
        normal = [
            token["content"] for token in self.json["added_tokens"] if token.get("normalized")
        ]
        return not normal or (
            kinds <= {"Prepend", "Replace"} and not any(set(" ▁") & set(name) for name in normal)
        )

    @cached_property
    def is_control(self) -> NDArray[np.bool_]:
        """Whether an id is one that no text can give: (vocab,)."""
        table = np.zeros(self.vocab, dtype=np.bool_)
        table[self.controls] = True
        return table

    def _encoder(self, form: Form) -> Encode:
        backend, encode = encoder(self.json, self.fingerprint, form, self.settings.backend)
        if form == "piece":
            self.backend = backend
        return encode

    def verify(self, text: str, place: str) -> None:
        """Compare a text's ids with the reference's; InputError where they differ.

        A text longer than a window is taken as it is: the reference needs too much memory for it.
        """
        if len(text) > WINDOW:
            return
        forms: dict[Form, Encode] = {"document": self.encode, "piece": self.encode_piece}
        for form, encode in forms.items():
            if (
                encode(text).tolist()
                != self.reference(form).encode(text, add_special_tokens=False).ids
            ):
                raise InputError(
                    f"{place}: {self.backend} gives other ids for this text than tokenizers does; "
                    "set tokenizer.backend: tokenizers and build into another --out"
                )

    def reference(self, form: Form) -> tokenizers.Tokenizer:
        """Return what the ids of a form are held against, as `tokenizers` loads it."""
        if form not in self._references:
            self._references[form] = reference(derived(self.json, form))
        return self._references[form]

    def _refuse_controls(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            ids = self.encode(text)
            found = ids[self.is_control[ids]]
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
        return bytes_of(self.json, self.added, self.vocab)

    @cached_property
    def is_text(self) -> NDArray[np.bool_]:
        """Whether the bytes of each id are whole characters: (vocab,)."""
        return np.array([is_text(data) for data in self.bytes_of])

    def decode(self, ids: Iterable[int], *, whole: bool = True) -> str:
        """Return the text of ids; `whole` drops the dummy space before a document."""
        data = b"".join(self.bytes_of[i] for i in ids)
        if whole and self.dummy_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def _special(self, part: str) -> int | None:
        asked: str | None = getattr(self.settings, part)
        if asked is not None and asked not in self.added:
            raise RecipeError(
                f"tokenizer.{part}: {asked!r} is no added token of {self.settings.path} "
                f"(it has {', '.join(sorted(self.added)[:8])} ...)"
            )
        names = KNOWN[part] if asked is None else (asked,)
        return next((self.added[name] for name in names if name in self.added), None)


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
    except KeyError as error:
        fault = f"it lacks the key {error}"
    except (orjson.JSONDecodeError, TypeError, ValueError) as error:
        fault = str(error)
    raise InputError(
        f"{path}: is no tokenizer.json of BPE kind ({fault}); give one that `tokenizers` saved"
    )


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
