"""CrystalChat in miniature: teach a trained phase to answer, in the template of CrystalChat.

    python examples/crystalchat_mini.py demo/build demo/run.yaml demo/run phase2 chat

Takes a build, its run file, its run and a phase; begins with that phase's last checkpoint. The
tokenizer gets CrystalChat's four tokens behind its vocabulary, where the model has room for them.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

from ruamel.yaml import YAML

import crystalmix as cm

TOKENS = ("<|sys_start|>", "<|sys_end|>", "<|im_start|>", "<|im_end|>")
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
STEPS, BATCH = 150, 8


def with_tokens(path: Path) -> bytes:
    """Return a tokenizer.json with the tokens of roles added as special ones."""
    content = json.loads(path.read_bytes())
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    for number, name in enumerate(TOKENS, max(ids) + 1):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": number, "content": name, "special": True, **flags})
    return json.dumps(content).encode()


def conversations() -> list[dict[str, object]]:
    """Return questions about numbers: one turn, or two."""
    pairs = [(f"What comes after {a}?", f"{b}.") for a, b in pairwise(NUMBERS)]
    talks = [[pair] for pair in pairs] + [[a, b] for a, b in zip(pairs, pairs[3:], strict=False)]
    return [
        {"conversations": [{"from": who, "value": text} for pair in talk
                           for who, text in zip(("human", "gpt"), pair, strict=True)]}
        for talk in talks
    ]  # fmt: skip


def main(build: Path, run_file: Path, run: Path, phase: str, out: Path) -> None:
    """Write tokenizer, conversations, recipe and run file to `out`; build, train, ask."""
    out.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    (out / "tokenizer.json").write_bytes(with_tokens(build / "tokenizer.json"))
    lines = [json.dumps(talk) for talk in conversations()]
    (out / "talks.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    settings = yaml.load(run_file)
    chat = {"template": "crystal", "system": "Answer in one word."}
    part = {"domain": "talks", "weight": 1.0, "max_epochs": 1000}
    recipe = {
        "name": "crystalchat-mini",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": {"msl": 64, "pack": "best_fit", "documents": "masked"},
        "sources": {"talks": {"files": ["talks.jsonl"], "format": "chat"}},
        "domains": {"talks": {"sources": ["talks"], "chat": chat}},
        "phases": {"chat": {"steps": STEPS, "batch": BATCH, "parts": [part]}},
    }
    yaml.dump(recipe, out / "recipe.yaml")
    settings["model"]["loss_scaling"] = "num_tokens"
    settings["optimizer"]["learning_rate"] = [
        {"scheduler": "CosineDecay", "initial_learning_rate": 0.01,
         "end_learning_rate": 0.001, "decay_steps": STEPS},
    ]  # fmt: skip
    settings["runconfig"] |= {"checkpoint_steps": STEPS, "micro_batch": BATCH}
    settings.pop("phases", None)
    yaml.dump(settings, out / "run.yaml")
    cm.build(out / "recipe.yaml", data=out, out=out / "build")
    *_, last = sorted((run / phase / "checkpoints").glob("step-*"))
    cm.train(out / "build", out / "run.yaml", out=out / "run", init_from=last)
    right = 0
    for talk in conversations()[: len(NUMBERS) - 1]:
        question, answer = (message["value"] for message in talk["conversations"])
        reply = cm.chat(out / "run", question, new=20)
        right += reply.ended and reply.answer == answer
        print(f"{question} {reply.answer}")
    print(f"{right} of {len(NUMBERS) - 1} answers are right, and end")


if __name__ == "__main__":
    *places, phase, out = sys.argv[1:]
    main(*map(Path, places), phase, Path(out))
