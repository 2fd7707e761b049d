"""Metadata: heads of texts become special ids, come back as they were, and stay in front of FIM."""

import re
from collections.abc import Callable

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.documents.source import Document, Source
from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import byte_level, made, small, texts

TOKENS = ("<reponame>", "<filename>", "<gh_stars>")
MARKS = re.compile("<reponame>|<filename>|<gh_stars>")


def with_metadata(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the three added tokens of StarCoder's metadata."""
    content = orjson.loads(tokenizer.raw)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": tokenizer.vocab + i, "content": name, **flags, "special": True}
        for i, name in enumerate(TOKENS)
    ]
    return made(content)


LLAMA_STYLE, BYTE_LEVEL = with_metadata(small()), with_metadata(byte_level())
each = pytest.mark.parametrize("tokenizer", [LLAMA_STYLE, BYTE_LEVEL], ids=["llama", "byte-level"])
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n▁<"), max_size=12)


def source(*entries: str, keep: tuple[str, ...] = ()) -> Source:
    return Source("code", ("x",), metadata=entries or TOKENS, keep=keep)


def encoded(tokenizer: Tokenizer, text: str, *columns: str | None, **fields: object) -> Encoded:
    chosen = source(*fields.get("entries", ()), keep=fields.get("keep", ()))  # type: ignore[arg-type, misc]
    metadata = Metadata(tokenizer, chosen)
    return HeadEncoder(tokenizer, metadata)(Document(3, 9, text, columns))


def back(tokenizer: Tokenizer, ids: object) -> str:
    """Return the text of ids; only a text without a head has a dummy space to drop."""
    table = np.asarray(ids).tolist()
    headed = bool(table) and table[0] in {tokenizer.added[name] for name in TOKENS}
    return tokenizer.decode(table, whole=not headed)


@each
@settings(max_examples=100, deadline=None)
@given(chosen=st.lists(st.tuples(st.booleans(), values), min_size=3, max_size=3), body=texts)
def test_a_text_with_a_head_comes_back_from_its_ids(
    tokenizer: Tokenizer, chosen: list[tuple[bool, str]], body: str
) -> None:
    given_ = list(zip(TOKENS, chosen, strict=True))
    head = "".join(name + value for name, (there, value) in given_ if there)
    text = (f"{head}\n" if head else "") + body.replace("▁", "_")
    done = encoded(tokenizer, text)
    assert back(tokenizer, done.ids) == text
    ids = done.ids.tolist()
    found = [i for i in ids if i in tokenizer.controls]
    if head:
        assert found == [tokenizer.added[name] for name, (there, _) in given_ if there]
        assert ids[0] == found[0]
    assert done.controls == len(found) <= 3


@each
@settings(max_examples=60, deadline=None)
@given(body=texts, seed=st.integers(0, 99), cut=st.sampled_from(["character", "token"]))
def test_the_head_stays_in_front_and_the_body_is_permuted(
    tokenizer: Tokenizer, body: str, seed: int, cut: str
) -> None:
    body = body.replace("▁", "_") + "x"
    head, marks = "<reponame>a/b<filename>c d.py<gh_stars>7\n", fim.sentinels(tokenizer)
    chosen = FimSettings(rate=1.0, cut=cut)  # type: ignore[arg-type]
    encode = DocumentFim(tokenizer, chosen, seed, "d", 0, Metadata(tokenizer, source()))
    done = encode(Document(0, seed * 7919, head + body))
    ids, start = done.ids.tolist(), 0
    front = Metadata(tokenizer, source()).head(Document(0, 0, head))
    assert front is not None
    assert ids[: len(front.ids)] == front.ids.tolist()
    assert back(tokenizer, front.ids) == head
    assert done.controls == 6
    rest = ids[len(front.ids) :]
    assert rest[0] == marks.prefix
    first, second = done.cuts
    start = len(head) if cut == "character" else len(front.ids)
    assert start <= first <= second
    if cut == "character":
        text = head + body
        pieces = [text[start:first], text[first:second], text[second:]]
        told = [tokenizer.encode_piece(piece).tolist() for piece in pieces]
        assert sorted(i for piece in told for i in piece) == sorted(
            i for i in rest if i not in tokenizer.controls
        )


@each
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<reponame>a<filename>b<gh_stars>1\nx", 3),
        ("<filename>b\nx", 1),
        ("<reponame>a", 1),
        ("<reponame><filename>\n", 2),
        ("<filename>b<reponame>a\nx", 1),  # of another order: the second is a part of the value
        ("<filename>a<filename>b\nx", 1),
        ("x<reponame>a\n", 0),
        (" <reponame>a\n", 0),
        ("<REPONAME>a\n", 0),
        ("\n<reponame>a\n", 0),
        ("<reponame>a\n<filename>b\n", 1),
    ],
)
def test_only_what_is_at_the_head_becomes_special(
    tokenizer: Tokenizer, text: str, found: int
) -> None:
    done = encoded(tokenizer, text)
    assert done.controls == found == sum(i in tokenizer.controls for i in done.ids.tolist())
    assert back(tokenizer, done.ids) == text


def test_columns_fill_in_what_the_text_lacks() -> None:
    keep = ("repo", "meta.path", "stars")
    entries = ("<reponame>=repo", "<filename> = path", "<gh_stars>=stars")

    def told(text: str, *columns: str | None) -> str:
        done = encoded(LLAMA_STYLE, text, *columns, entries=entries, keep=keep)
        return back(LLAMA_STYLE, done.ids)

    assert told("x = 1", "a/b", "c.py", "7") == "<reponame>a/b<filename>c.py<gh_stars>7\nx = 1"
    assert told("x = 1", None, "c.py", None) == "<filename>c.py\nx = 1"
    assert told("x = 1", None, None, None) == "x = 1"
    assert told("<filename>own\nx", "a/b", "c.py", None) == "<reponame>a/b<filename>own\nx"
    assert told("<filename>own", "a/b", "c.py", None) == "<reponame>a/b<filename>own"


@pytest.mark.parametrize(
    ("entries", "keep", "message"),
    [
        (("<reponame>", "<nope>"), (), r"'<nope>' is no added token of here; name tokens it has"),
        (("<reponame>=repo",), ("stars",), r"'repo' is no kept column of source code \(it has st"),
        (("=repo",), ("repo",), r"^'' is no added token of here"),
        (("<reponame>=repo",), (), r"'repo' is no kept column .*\(it has none\); add it to `keep`"),
    ],
)
def test_what_is_not_there_is_refused(
    entries: tuple[str, ...], keep: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Metadata(LLAMA_STYLE, source(*entries, keep=keep))


def test_a_value_that_spells_a_control_is_text() -> None:
    make: Callable[[str], Encoded] = lambda text: encoded(LLAMA_STYLE, text)  # noqa: E731
    done = make("<reponame></s><|fim_middle|><filename>\n<s>")
    assert done.controls == sum(i in LLAMA_STYLE.controls for i in done.ids.tolist()) == 2
    assert MARKS.findall(back(LLAMA_STYLE, done.ids)) == ["<reponame>", "<filename>"]
