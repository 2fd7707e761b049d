"""Chat through a whole build: golden rows, the layouts of records, rules and their counts."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.account_report import fitted_lines
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import BrokenFile, CrystalmixError, RecipeError
from helpers import corpora
from helpers.chat import SYSTEM, chatty_llama, chatty_small, recipe_of
from helpers.materials import raw, shared


def account_of(out: Path, domain: str = "talk") -> dict[str, Any]:
    return receipts.read(out / "domains" / domain / "epoch-0").account


def rows_of(out: Path, domain: str = "talk") -> shards.Rows:
    place = out / "domains" / domain / "epoch-0"
    return np.concatenate([shards.read(path) for path in shards.folder(place)])


def test_raw_sharegpt_gives_the_published_rows(tmp_path: Path) -> None:
    """Chat tests 1 and 5."""
    golden = np.load(shared("golden", "chat", "sharegpt_rows.npz"))
    records = orjson.loads(shared("golden", "chat", "sharegpt_raw.json").read_bytes())
    raw(tmp_path / "talk.jsonl", records)
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    keep = {"same_role": "keep", "last_user": "keep", "system": SYSTEM}
    recipe = recipe_of(
        tmp_path,
        rows={"msl": 2048, "window": "apart", "tail": "drop"},
        chat={"template": "crystal", **keep},
    )
    build(recipes.load(recipe), tmp_path, tmp_path / "out", workers=1)
    rows = rows_of(tmp_path / "out")
    for channel, name in enumerate(("token_ids", "loss_mask", "label_ids")):
        assert np.array_equal(rows[:, channel], golden[name])
    assert verify(tmp_path / "out") == []
    account = account_of(tmp_path / "out")
    assert account["chat"]["cases"] == {"first_assistant": 1, "system_default": 5}
    assert account["chat"]["conversations"] == account["chat"]["rendered"] == 5
    assert account["dropped"]["label_only"] == 4
    assert account["tokens_in"] == account["tokens_out"] + sum(account["dropped"].values())


TALK = [("user", "quartz lantern?"), ("assistant", "amber river."), ("user", "ember?"),
        ("assistant", "stone and willow.")]  # fmt: skip
SHAREGPT = {"user": "human", "assistant": "gpt"}
TREE = [
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": TALK[0][1], "rank": None},
    {"message_id": "x", "parent_id": "a", "role": "assistant", "text": "worse", "rank": 1},
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": TALK[1][1], "rank": 0},
    {"message_id": "c", "parent_id": "b", "role": "prompter", "text": TALK[2][1], "rank": None},
    {"message_id": "d", "parent_id": "c", "role": "assistant", "text": TALK[3][1], "rank": 0},
    {"message_id": "e", "parent_id": "a", "role": "assistant", "text": "x", "deleted": True},
]
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [{"role": role, "content": text} for role, text in TALK]}],
    "parts": [
        {
            "messages": [
                {"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK
            ]
        }
    ],
    "sharegpt": [{"conversations": [{"from": SHAREGPT[r], "value": t} for r, t in TALK]}],
    "alpaca": [
        {
            "instruction": TALK[2][1],
            "input": "",
            "output": TALK[3][1],
            "history": [[TALK[0][1], TALK[1][1]]],
        }
    ],
    "completion": [
        {
            "prompt": [{"role": r, "content": t} for r, t in TALK[:3]],
            "completion": [{"role": "assistant", "content": TALK[3][1]}],
        }
    ],
    "tree": TREE,
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_layout_of_one_conversation_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    made: dict[str, bytes] = {}
    for name, records in LAYOUTS.items():
        folder = tmp_path / name
        raw(folder / f"talk.{kind}", records)
        (folder / "tokenizer.json").write_bytes(chatty_llama())
        recipe = recipe_of(folder, rows={"msl": 64}, chat={"template": "crystal"})
        build(recipes.load(recipe), folder, folder / "out", workers=1)
        rows = rows_of(folder / "out")
        assert rows[:, 1].sum() > 4
        made[name] = rows.tobytes()
    assert len(set(made.values())) == 1


def talks(count: int) -> list[dict[str, Any]]:
    """Return conversations of all sorts: long, odd, empty, forging."""
    rng = np.random.default_rng(3)
    records: list[dict[str, Any]] = []
    for number in range(count):
        messages = []
        if number % 3 == 0:
            messages.append({"role": "system", "content": corpora.sentences(rng, 1)})
        if number % 7 == 0:
            messages.append({"role": "assistant", "content": corpora.sentences(rng, 1)})
        for turn in range(int(rng.integers(1, 6))):
            text = corpora.sentences(rng, int(rng.integers(1, 3)))
            if turn == 1 and number % 5 == 0:
                text = f"<|im_end|>{text}</s><|im_start|>"
            messages.append({"role": "user", "content": text})
            text = "" if turn == 1 and number % 4 == 0 else corpora.sentences(rng, 1)
            messages.append({"role": "assistant", "content": text})
        if number % 6 == 0:
            messages.append({"role": "user", "content": "And?"})
        records.append({"messages": messages})
    records.append({"messages": [{"role": "user", "content": "nobody answers"}]})
    return records


CHOICES = [
    {"rows": {"msl": 96, "window": "apart", "rows_per_shard": 7}},
    {"rows": {"msl": 96, "pack": "best_fit", "too_long": "split_turns", "rows_per_shard": 7}},
    {"rows": {"msl": 96, "too_long": "split_turns"}},
    {"rows": {"msl": 96, "pack": "best_fit", "too_long": "drop", "documents": "masked"}},
]


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_builds_are_alike_for_any_workers_and_verify(tmp_path: Path, number: int) -> None:
    """Chat tests 3 (the counter) and 5."""
    records = talks(60)
    for i in range(3):
        raw(tmp_path / f"talk-{i}.jsonl", records[i::3])
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    recipe = recipe_of(tmp_path, chat={"template": "crystal"}, **CHOICES[number])
    builds = []
    for workers in (1, 2, 3):
        out = tmp_path / f"out-{workers}"
        build(recipes.load(recipe), tmp_path, out, workers=workers)
        builds.append(corpora.contents(out))
        if workers > 1:
            assert builds[-1] == builds[0]
        if workers == 2:
            assert verify(out) == []
    account = account_of(tmp_path / "out-1")
    chat = account["chat"]
    assert chat["conversations"] == 61
    assert chat["conversations"] == chat["rendered"] + sum(chat["dropped"].values())
    assert chat["dropped"]["no_turn"] == 1
    assert chat["cases"]["first_assistant"] == 9
    assert chat["cases"]["last_user"] == 11
    assert account["tokens_in"] == account["tokens_out"] + sum(account["dropped"].values())
    assert account["literals"]["<|im_end|>"][0] > 5
    rows = rows_of(tmp_path / "out-1")
    assert rows[:, 1].sum(1).all() or number == 1


def test_conversations_that_are_dropped_are_told_by_build_and_show(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "quartz " * 90}, {"role": "assistant", "content": "amber"}]
    short = [{"role": "user", "content": "quartz?"}, {"role": "assistant", "content": "amber."}]
    records = [{"messages": m} for m in (long, short, [*short, *long], short[:1])]
    raw(tmp_path / "talk.jsonl", records)
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    recipe = recipe_of(
        tmp_path, chat={"template": "crystal"}, rows={"msl": 96, "too_long": "split_turns"}
    )
    told = corpora.crystalmix("build", recipe, "--out", tmp_path / "out", "--workers", 1)
    assert (
        "note: domain talk: 2 of 4 conversations dropped (no_turn 1, too_long 1), 4 turns left out "
        f"of those that fit no row whole; crystalmix show {tmp_path / 'out'} tells more\n"
    ) in told.stderr
    shown = corpora.crystalmix("show", tmp_path / "out").stdout.splitlines()
    [line] = [line for line in shown if "no_turn" in line]
    assert line.split()[:2] == ["domains/talk/epoch-0", "4"]
    assert line.split()[2:4] == ["2", "2"]
    assert line.endswith("no_turn 1, too_long 1")


@pytest.mark.parametrize("pack", ["stream", "best_fit"])
def test_a_conversation_of_several_pieces_counts_as_one_document(pack: str, tmp_path: Path) -> None:
    turns = [("user", "quartz lantern " * 6), ("assistant", "amber river " * 6)]
    short = [{"role": role, "content": text} for role, text in turns]
    raw(tmp_path / "talk.jsonl", [{"messages": short * 4}, {"messages": short}])
    (tmp_path / "tokenizer.json").write_bytes(chatty_small())
    rows = {"msl": 192, "too_long": "split_turns", "pack": pack}
    recipe = recipe_of(tmp_path, chat={"template": "crystal"}, rows=rows)
    build(recipes.load(recipe), tmp_path, tmp_path / "out")
    account = account_of(tmp_path / "out")
    counts = account["sources"]["talk"]
    assert account["chat"]["pieces"] > 2
    assert counts["documents"] == 2
    assert counts["lengths"]["min"] + counts["lengths"]["max"] == account["tokens_in"]
    if pack == "best_fit":
        [line] = fitted_lines(tmp_path / "out")[-1:]
        assert line.split()[-2] == "50.0%"
        assert counts["cut"] == 1


def test_a_conversation_is_cut_where_what_is_left_of_its_pieces_would_fit(tmp_path: Path) -> None:
    first, long = [{"role": "user", "content": "amber"}], "quartz lantern " * 60
    answer = {"role": "assistant", "content": "river"}
    talk = [*first, answer, {"role": "user", "content": long}, answer, *first, answer]
    raw(tmp_path / "talk.jsonl", [{"messages": talk}, {"messages": [*first, answer]}])
    (tmp_path / "tokenizer.json").write_bytes(chatty_small())
    rows = {"msl": 192, "too_long": "split_turns", "pack": "best_fit"}
    recipe = recipe_of(tmp_path, chat={"template": "crystal"}, rows=rows)
    build(recipes.load(recipe), tmp_path, tmp_path / "out")
    account = account_of(tmp_path / "out")
    assert account["chat"]["pieces"] == 3
    assert account["tokens_in"] < 192
    assert account["sources"]["talk"]["cut"] == 1


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "talk.jsonl:1: message 1: role 'narrator' is not known; .* by `conversations.roles",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "talk.jsonl:1: message 1: it has a part of type 'image_url'",
        ),
        (
            {"messages": [], "conversations": []},
            "talk.jsonl:1: fits the layouts messages and sharegpt; set `conversations.layout`",
        ),
        ({"other": 1}, "talk.jsonl has no column of a conversation"),
        (
            {"messages": [{"role": "user", "content": "x", "train": "no"}]},
            "talk.jsonl:1: message 1: its train must be true, false, 0 or 1, got 'no'",
        ),
    ],
)
def test_a_record_that_is_not_certain_is_refused_with_its_place(
    tmp_path: Path, record: dict[str, Any], told: str
) -> None:
    raw(tmp_path / "talk.jsonl", [record])
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    recipe = recipe_of(tmp_path, chat={"template": "crystal"})
    with pytest.raises(BrokenFile, match=told):
        build(recipes.load(recipe), tmp_path, tmp_path / "out", workers=1)


def test_calls_of_tools_are_refused_or_dropped(tmp_path: Path) -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}]
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    raw(tmp_path / "talk.jsonl", [{"messages": messages}, good])
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    recipe = recipe_of(tmp_path, chat={"template": "crystal"})
    with pytest.raises(CrystalmixError, match="message 2 is of role tool_call, for which the temp"):
        build(recipes.load(recipe), tmp_path, tmp_path / "out", workers=1)
    recipe = recipe_of(tmp_path, chat={"template": "crystal", "tools": "drop"})
    build(recipes.load(recipe), tmp_path, tmp_path / "other", workers=1)
    assert account_of(tmp_path / "other")["chat"]["dropped"] == {"tools": 1}


def test_a_template_that_texts_could_forge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(chatty_llama())
    asked = {"user": [{"text": "User: "}, "TEXT"], "assistant": [{"text": "Bot: "}, "TEXT"]}
    with pytest.raises(RecipeError, match="markers: no special token stands between user and assi"):
        recipes.load(recipe_of(tmp_path, chat={"template": asked}))
    template = {"user": ["<|nowhere|>", "TEXT"], "assistant": ["TEXT"]}
    raw(tmp_path / "talk.jsonl", LAYOUTS["messages"])
    recipe = recipe_of(tmp_path, chat={"template": template})
    with pytest.raises(RecipeError, match=r"domains.talk.chat: template: '<\|nowhere\|>' is no ad"):
        build(recipes.load(recipe), tmp_path, tmp_path / "out", workers=1)
