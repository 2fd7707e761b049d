"""What a stranger does with an export, in an environment without crystalmix: a script of tests.

    PYTHON transformers_script.py FOLDER REQUEST ANSWER

REQUEST holds `ids` (rows of equal length); ANSWER gets logits, greedy text with and without the
cache, logits of the rows padded on the left, the loss on the rows themselves, and a decoded text.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW, PADDED = 12, 3


def main(folder: str, request: str, answer: str) -> None:
    assert find_spec("crystalmix") is None
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        told
    )
    model.eval()
    ids = load_file(request)["ids"]
    with torch.no_grad():
        logits = model(ids).logits
        start = ids[:1, :8]
        cached = model.generate(start, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        plain = model.generate(
            start, max_new_tokens=NEW, do_sample=False, pad_token_id=0, use_cache=False
        )
        padding = torch.zeros(len(ids), PADDED, dtype=ids.dtype)
        mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask, position_ids=places)
        found = {
            "logits": logits.float(),
            "cached": cached,
            "plain": plain,
            "padded": padded.logits[:, PADDED:].float(),
            "loss": model(ids, labels=ids).loss.float(),
        }
        again = Path(answer).parent / "again"
        model.save_pretrained(again)
        found["kept"] = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)(
            ids
        ).logits.float()
    save_file({name: x.contiguous() for name, x in found.items()}, answer)
    if (Path(folder) / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        sys.stdout.write(tokenizer.decode(tokenizer("quartz lantern").input_ids))


if __name__ == "__main__":
    main(*sys.argv[1:])
