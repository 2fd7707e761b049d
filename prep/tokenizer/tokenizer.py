"""Tokenizers: any Hugging Face tokenizer.json, encoded fast and proven equal to the reference.

The ids are those that `tokenizers` gives with the user's unmodified file, but for one thing: tokens
that the file calls special, such as `<s>`, are not matched in a text. Their ids only ever come from
the packer, from FIM and from metadata that a source asks for. Other added tokens (runs of spaces,
tags) are text like any other. `backends` finds the fastest library that gives those ids.

Text pieces that continue a document (FIM middles and suffixes) are encoded by a twin without the
dummy space that Llama-style tokenizers put in front of a text, so that pieces rejoin byte for byte.
"""

from __future__ import annotations

import logging
import stat
import unicodedata
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from crystalmix.prep.runtime.atomic_files import is_url, regular_bytes
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, Strict, frozen
from crystalmix.prep.tokenizer import findings
from crystalmix.prep.tokenizer.backends import REFERENCE, Choice, derived, encoder, is_prepended
from crystalmix.prep.tokenizer.canary_texts import DOCUMENTS
from crystalmix.prep.tokenizer.findings import Findings
from crystalmix.prep.tokenizer.long_texts import WINDOW, LongTexts, way_of
from crystalmix.prep.tokenizer.reference import reference
from crystalmix.prep.tokenizer.special_spellings import Literals, bytes_of, is_text

with imported_later(__name__):
    import numpy as np
    import tokenizers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.tokenizer.reference import Encode, Form, Ids

# Spellings met in public tokenizers, tried in this order where the recipe names none.
KNOWN = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>"),
    "pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<pad>"),
}


SAMPLED = 2000  # one in so many documents is encoded by the reference, too
EXCERPT = 1 << 17  # characters of a long text that are
# Of bundled recipes, which ship none: where theirs is to be had.
PUBLISHED = {
    "crystal-32022.json": ", in the recipe or with --tokenizer (this one lies in "
    "LLM360/crystalcoder-train on GitHub)"
}
MOST_BYTES = 256 << 20  # of a tokenizer.json; the largest public ones have 40 MB
# Texts that show what a tokenizer drops: the example of a note should be one that a reader knows.
COMMON = ("def f(x):\n    return x\n", "Two  spaces, and a\ttab", "The End. Straße № 7: 3½ €")


@frozen
class TokenizerSettings(Strict):
    """Which tokenizer, and which of its added tokens play which part (None: by known spelling).

    backend: the library that encodes; auto is the fastest that is proven. verify_every: one in so
    many documents, chosen by digest, is encoded by the reference too (0: none); so few by default
    that they cost less than 2 % of tokenising.
    """

    path: str
    bos: str | None = None
    eos: str | None = None
    fim_prefix: str | None = None
    fim_middle: str | None = None
    fim_suffix: str | None = None
    pad: str | None = None
    backend: Choice = "auto"
    verify_every: int = SAMPLED

    def __post_init__(self) -> None:
        if self.verify_every < 0:
            raise ValueError(f"verify_every: must be 0 (never) or more, got {self.verify_every}")


class Tokenizer:
    """Encode documents and pieces of documents to ids, and ids back to text."""

    def __init__(
        self, settings: TokenizerSettings, raw: bytes, findings: Findings | None = None
    ) -> None:
        """Take the bytes of a tokenizer.json; ValueError and InputError say why it is unfit.

        findings: what texts showed of it before; they are encoded now where that is not known.
        """
        self.settings, self.raw = settings, raw
        content: object = orjson.loads(raw)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
        self.json: Json = content
        self.fingerprint = sha256(raw).hexdigest()
        model, tokens = self.json["model"], self.json["added_tokens"]
        self.added = {str(token["content"]): int(token["id"]) for token in tokens}
        # Tokens that are matched in texts: those that the file does not call special.
        self.matched = tuple(str(t["content"]) for t in tokens if not t.get("special"))
        self.vocabulary = _vocabulary(model["vocab"])
        ids = [*self.vocabulary.values(), *self.added.values()]
        self.vocab = int(max(ids)) + 1
        self.specials = [name for name in self.added if name not in self.matched]
        if model.get("type", "BPE") != "BPE" and not model.get("byte_fallback"):
            unknown = _unknown(model)  # it stands for what the vocabulary can't spell: it is text
            self.specials = [name for name in self.specials if name != unknown]
        self.special = {part: self._special(part) for part in KNOWN}
        hidden = {self.added[name] for name in self.specials}
        parts = {number for number in self.special.values() if number is not None}
        self.control_ids = tuple(sorted(hidden | parts))
        self.literals = Literals(self.added)
        self.dummy_prefix = derived(self.json, "document") != derived(self.json, "piece")
        self.long_texts = LongTexts(way_of(self.json), lambda: self.bytes_of)
        self._served: dict[Form, tuple[str, Encode]] = {}
        self._references: dict[Form, tokenizers.Tokenizer] = {}
        self._remembered: dict[str, Ids] | None = None
        self.findings = findings or Findings(*self._shown(hidden))
        given = {*self.findings.given} | (parts - hidden)
        self.spelt_controls = tuple(name for name, i in self.added.items() if i in given)
        self.canary = self.findings.canary

    def _shown(self, hidden: set[int]) -> tuple[tuple[int, ...], str]:
        """Return the control ids that texts give, and the digest of the canary documents' ids."""
        given = tuple(sorted(self._refuse_controls(hidden)))
        ids = b"".join(self.encode(text).tobytes() for text in DOCUMENTS)
        return given, sha256(ids).hexdigest()

    def encode(self, text: str) -> Ids:
        """Encode a whole document, without BOS or EOS: (n,) uint32."""
        if self._remembered is None:
            return self._whole(text)
        ids = self._remembered.get(text)
        if ids is None:
            ids = self._remembered[text] = self._whole(text)
        return ids

    def _whole(self, text: str) -> Ids:
        if len(text) <= WINDOW:
            return self._document(text)
        return self.long_texts.encode(text, self._document, self._piece)

    @contextmanager
    def remembering(self) -> Generator[None]:
        """Keep the ids of whole documents meanwhile: who encodes one again has the same array."""
        self._remembered = {}
        try:
            yield
        finally:
            self._remembered = None

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
    def base(self) -> Tokenizer:
        """The tokenizer before tokens were added to its vocabulary: itself, if none were."""
        added = self.json["added_tokens"]
        tokens = [token for token in added if token["content"] in self.vocabulary]
        if len(tokens) == len(added):
            return self
        raw = orjson.dumps({**self.json, "added_tokens": tokens, "post_processor": None})
        return Tokenizer(TokenizerSettings(self.settings.path, backend=self.settings.backend), raw)

    @cached_property
    def _document(self) -> Encode:
        piece = self._piece
        if not self.dummy_prefix:
            return piece
        if is_prepended(self.json):  # one encoder, and one memory of words, for both
            return lambda text: piece(f" {text}" if text else "")
        return self._serving("document")[1]

    @cached_property
    def _piece(self) -> Encode:
        return self._serving("piece")[1]

    @cached_property
    def _matched(self) -> Encode:
        return self._serving("matched")[1]

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
    def controls(self) -> NDArray[np.uint32]:
        """The ids that no text gives, sorted: (n,)."""
        return np.array(self.control_ids, dtype=np.uint32)

    @cached_property
    def backend(self) -> str:
        """The library that encodes."""
        return self._serving("piece")[0]

    @cached_property
    def is_control(self) -> NDArray[np.bool_]:
        """Whether an id is one that no text can give: (vocab,)."""
        table = np.zeros(self.vocab, dtype=np.bool_)
        table[self.controls] = True
        return table

    def _serving(self, form: Form) -> tuple[str, Encode]:
        """Return the library that serves a form, and its encoder."""
        if form not in self._served:
            self._served[form] = encoder(self.json, self.raw, form, self.settings.backend)
        return self._served[form]

    def count_controls(self, ids: Ids) -> int:
        """Count the control ids that a text spelt: none, but where the file does not hide them."""
        return int(self.is_control[ids].sum()) if self.spelt_controls else 0

    def verify(self, text: str, place: str) -> None:
        """Compare a text's ids with the reference's; InputError where they differ.

        The reference would need too much memory for a text longer than a window: an excerpt is
        compared, encoded in windows of an eighth.
        """
        encoders: dict[Form, Encode] = {"document": self.encode, "piece": self.encode_piece}
        if len(text) > WINDOW:
            start = (len(text) - EXCERPT) // 2
            text = text[start : start + EXCERPT]
            windows, rest = replace(self.long_texts, window=EXCERPT // 8), self._piece
            encoders = {
                "document": lambda text: windows.encode(text, self._document, rest),
                "piece": lambda text: windows.encode(text, rest, rest),
            }
        # One encoder serves both forms, unless a document's space in front is of a kind of its own.
        both = self.dummy_prefix and not is_prepended(self.json)
        for form in encoders if both else ("document",):
            ids = encoders[form](text).tolist()
            if ids != self.reference(form).encode(text, add_special_tokens=False).ids:
                raise InputError(
                    f"{place}: {self.backend} gives other ids for this text than tokenizers does; "
                    "set tokenizer.backend: tokenizers and build into another --out"
                )

    def reference(self, form: Form) -> tokenizers.Tokenizer:
        """Return what the ids of a form are held against: the file as `tokenizers` loads it."""
        if form not in self._references:
            self._references[form] = reference(self.raw, form)
        return self._references[form]

    def notes(self) -> Iterator[str]:
        """Yield what a user should know of a tokenizer before texts are given to it."""
        if self.spelt_controls:
            yield (
                f"{self.settings.path}: does not keep {', '.join(self.spelt_controls)} from texts: "
                "a text that spells one of them gets its id"
            )
        # Llama's kind takes ▁ for a space, and nobody writes it.
        texts = {
            text: self.encode(text).tolist() for text in (*COMMON, *DOCUMENTS) if "▁" not in text
        }
        used = {number for ids in texts.values() for number in ids}
        # The bytes of these ids alone: the table of all takes longer than the rest of loading.
        pieces = {piece: number for piece, number in self.vocabulary.items() if number in used}
        table = bytes_of(self.json, pieces, self.vocab)
        for text, ids in texts.items():
            back = self._joined(table[number] for number in ids)
            if unicodedata.normalize("NFC", back) != unicodedata.normalize("NFC", text):
                yield (
                    f"{self.settings.path}: does not give every text back: {text[:40]!r} becomes "
                    f"{back[:40]!r}; rows hold what it leaves of a text"
                )
                return

    def _refuse_controls(self, hidden: set[int]) -> set[int]:
        """Return the ids of special tokens that texts give; InputError where BPE gives any.

        Unigram's vocabularies hold the spelling of special tokens: nothing keeps them from texts.
        """
        table, given = np.zeros(self.vocab, dtype=np.bool_), set[int]()
        table[[*hidden]] = True
        for text in (*DOCUMENTS, *self.added):
            ids = self.encode(text)
            controls = ids[table[ids]].tolist()
            if controls and self.json["model"].get("type", "BPE") == "BPE":
                raise InputError(
                    f"{self.settings.path}: gives the control id {controls[0]} for the text "
                    f"{text!r}; use a tokenizer that spells every text: byte-level, or with byte "
                    "fallback"
                )
            given.update(controls)
        return given

    def id_of(self, part: str) -> int:
        """Return the id of `bos`, `eos`, `fim_prefix`, ...; RecipeError if there is none."""
        number = self.special[part]
        if number is None:
            raise RecipeError(
                f"{self.settings.path}: has no {part} token "
                f"(looked for {', '.join(KNOWN[part])}); name it as tokenizer.{part}"
            )
        return number

    @property
    def pad(self) -> int:
        """The id that fills an incomplete row: the pad token, else EOS, else 0."""
        numbers = (self.special[part] for part in ("pad", "eos"))
        return next((number for number in numbers if number is not None), 0)

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """The bytes each id stands for, a leading `▁` being a space; specials as spelt."""
        return bytes_of(self.json, self.vocabulary, self.vocab)

    @cached_property
    def is_text(self) -> NDArray[np.bool_]:
        """Whether the bytes of each id are whole characters: (vocab,)."""
        return np.array([is_text(data) for data in self.bytes_of])

    def decode(self, ids: Iterable[int], *, whole: bool = True) -> str:
        """Return the text of ids; `whole` drops the dummy space before a document."""
        return self._joined((self.bytes_of[i] for i in ids), whole=whole)

    def _joined(self, pieces: Iterable[bytes], *, whole: bool = True) -> str:
        data = b"".join(pieces)
        if whole and (self.dummy_prefix or self.json["model"].get("type") == "WordPiece"):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def _special(self, part: str) -> int | None:
        name: str | None = getattr(self.settings, part)
        if name is not None and name not in self.added:
            raise RecipeError(
                f"tokenizer.{part}: {name!r} is no added token of {self.settings.path} "
                f"(it has {', '.join(sorted(self.added)[:8])} ...)"
            )
        names = KNOWN[part] if name is None else (name,)
        present = [name for name in names if name in self.added]
        present.sort(key=lambda name: name in self.matched)  # Gemma's `<s>` is a tag, no BOS
        return self.added[present[0]] if present else None


def load(settings: TokenizerSettings) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json, also of a url, a folder with one, or a hub id.

    Logs the tokenizer's notes as warnings, once in a process. Raises InputError.
    """
    path = Path(settings.path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if is_url(settings.path):
        raw = _from_url(settings.path)
    elif path.exists():
        raw = _read(path)
    elif settings.path.count("/") == 1 and not settings.path.endswith(".json"):
        raw = _from_hub(settings.path)
    else:
        where = PUBLISHED.get(path.name, "")
        raise InputError(
            f"{path}: no such tokenizer file; give a tokenizer.json or a hub id{where}"
        )
    try:
        return _loaded(settings, raw)
    except KeyError as error:
        fault = f"it lacks the key {error}"
    except (orjson.JSONDecodeError, TypeError, ValueError) as error:
        fault = str(error)
    raise InputError(f"{path}: is no tokenizer.json ({fault}); give one that `tokenizers` saved")


def _read(path: Path) -> bytes:
    """Read a regular file of bounded size; InputError for anything else, before it is opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no regular file; give a tokenizer.json")
    if status.st_size > MOST_BYTES:
        raise InputError(
            f"{path}: holds {status.st_size >> 20} MiB, too much for a tokenizer.json "
            f"(at most {MOST_BYTES >> 20} MiB); give the file that `tokenizers` saved"
        )
    return path.read_bytes()


@lru_cache(maxsize=8)
def _loaded(settings: TokenizerSettings, raw: bytes) -> Tokenizer:
    key = findings.key_of(settings, raw)
    record = findings.remembered(key)
    tokenizer = Tokenizer(settings, raw, record)
    if record is None:
        record = replace(tokenizer.findings, notes=tuple(tokenizer.notes()))
        if tokenizer.backend != REFERENCE:  # else each process says why
            findings.remember(key, record)
    for note in record.notes:
        logging.getLogger("crystalmix").warning("%s", note)
    return tokenizer


def _vocabulary(vocab: object) -> dict[str, int]:
    """Return the id of each piece; Unigram's file lists [piece, score] in the order of ids."""
    if isinstance(vocab, dict):
        return vocab
    if not isinstance(vocab, list):
        raise TypeError("its vocabulary is neither an object nor a list")
    return {str(piece): number for number, (piece, _) in enumerate(vocab)}


def _unknown(model: Json) -> str | None:
    """Return the token for what a vocabulary can't spell."""
    number = model.get("unk_id")
    return model["vocab"][number][0] if number is not None else model.get("unk_token")


@lru_cache(maxsize=8)
def _from_url(url: str) -> bytes:
    return regular_bytes(Path(url), "give a tokenizer.json", MOST_BYTES)


@lru_cache(maxsize=8)
def _from_hub(name: str) -> bytes:
    try:
        return tokenizers.Tokenizer.from_pretrained(name).to_str().encode()
    except Exception as error:  # noqa: BLE001  the hub client raises its own zoo of exceptions
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer {name}: not a file, and the hub says: {first}") from None
