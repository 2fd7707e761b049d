"""CrystalChat's published rows: 59 conversations in their places, and raw ones to their rows."""

from pathlib import Path

import numpy as np
import orjson

from crystalmix.prep.chat.render import Renderer
from crystalmix.prep.chat.rules import Rules
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.documents.conversation_text import Message
from crystalmix.prep.rows import pack, shards, token_blocks
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from helpers.materials import crystal, made, shared

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
KEEP = {"first_assistant": "keep", "last_user": "keep", "same_role": "keep", "empty": "keep"}


def of_sharegpt(entries: list[dict[str, str]]) -> list[Message]:
    return [Message(ROLES[entry["from"]], entry["value"]) for entry in entries]


def test_published_conversations_render_to_their_places_with_their_masks() -> None:
    """Chat test 2."""
    rows = np.load(shared("golden", "chat", "crystalchat_rows.npz"))
    lines = shared("golden", "chat", "crystalchat_conversations.jsonl").read_bytes().splitlines()
    settings = ChatSettings("crystal", **KEEP)
    renderer = Renderer(crystal(), settings)
    rules = Rules(settings, renderer.template)
    assert len(lines) == 59
    for line in lines:
        entry = orjson.loads(line)
        turns = rules.apply(of_sharegpt(entry["conversations"]), "here")
        assert turns is not None
        whole = renderer.render(turns)
        row, start, stop = entry["row"], entry["start"], entry["stop"]
        assert whole.ids.tolist() == rows["token_ids"][row, start:stop].tolist()
        mask = rows["loss_mask"][row, start : stop - 1]
        assert whole.learnt[1:].astype(int).tolist() == mask.tolist()
        assert whole.learnt[0] == 0


def test_raw_conversations_give_the_published_rows(tmp_path: Path) -> None:
    """Chat test 1."""
    golden = np.load(shared("golden", "chat", "sharegpt_rows.npz"))
    raw = orjson.loads(shared("golden", "chat", "sharegpt_raw.json").read_bytes())
    system = (
        "You are a helpful and intelligent assistant. "
        "Follow the instructions and answer the questions as accurately as possible."
    )
    content = orjson.loads(shared("tokenizer", "llama-32000.json").read_bytes())
    names = ["<|sys_start|>", "<|sys_end|>", "<|im_start|>", "<|im_end|>"]
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": 32000 + i, "content": name, "special": True, **usual} for i, name in enumerate(names)
    ]
    tokenizer = made(content)
    settings = ChatSettings("crystal", system=system, **KEEP)
    renderer = Renderer(tokenizer, settings)
    rules = Rules(settings, renderer.template)
    documents = []
    for number, entry in enumerate(raw):
        turns = rules.apply(of_sharegpt(entry["conversations"]), "here")
        assert turns is not None
        whole = renderer.render(turns)
        documents.append(Encoded(number, whole.ids, 0, masked=whole.masked, turns=whole.turns))
    counts = token_blocks.write(tmp_path / "block.ids", documents, vocab=tokenizer.vocab)
    block = Block(tmp_path / "block.ids", "raw", counts.tokens, counts.wide, counts.turns)
    stream = Stream((block,))
    chosen = PackSettings(msl=2048, tail="drop", window="apart")
    [bounds] = pack.ranges_of(stream, chosen)
    pack.pack(stream, bounds, Shape(chosen, tokenizer.pad, ()), tmp_path / "rows.h5")
    rows = shards.read(tmp_path / "rows.h5")
    assert np.array_equal(rows[:, 0], golden["token_ids"])
    assert np.array_equal(rows[:, 2], golden["label_ids"])
    assert np.array_equal(rows[:, 1], golden["loss_mask"])
    assert rows[:, 1].sum() == 7433
