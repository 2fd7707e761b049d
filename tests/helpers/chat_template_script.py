"""What transformers makes of an exported chat template, in an environment without crystalmix.

    PYTHON chat_template_script.py FOLDER REQUEST ANSWER

REQUEST is JSON: conversations, each a list of messages. ANSWER gets for each the ids, the mask of
what is learnt, and the ids of the prompt of an answer to all but the last message.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer


def main(folder: str, request: str, answer: str) -> None:
    assert find_spec("crystalmix") is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = []
    for messages in json.loads(Path(request).read_text("utf-8")):
        whole = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True
        )
        made.append([whole["input_ids"], whole["assistant_masks"], prompt["input_ids"]])
    Path(answer).write_text(json.dumps(made), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
