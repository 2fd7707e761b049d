"""What vLLM makes of an export, in an environment without crystalmix: a script of tests.

    PYTHON vllm_script.py FOLDER REQUEST ANSWER

REQUEST holds `ids` (rows of equal length); ANSWER gets each row's greedy text and the log
probabilities of its own tokens.
"""

import os
import sys
from importlib.util import find_spec

from safetensors.torch import load_file, save_file
from torch import tensor
from vllm import LLM, SamplingParams

NEW, LONGEST = 12, 48


def main(folder: str, request: str, answer: str) -> None:
    assert find_spec("crystalmix") is None
    ids = load_file(request)["ids"].tolist()
    model = LLM(
        folder,
        trust_remote_code=True,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
    )
    how = SamplingParams(
        temperature=0, max_tokens=NEW, prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    told = model.generate([{"prompt_token_ids": row} for row in ids], how)
    texts = [[*each.prompt_token_ids, *each.outputs[0].token_ids] for each in told]
    logs = [[next(iter(x.values())).logprob for x in each.prompt_logprobs[1:]] for each in told]
    save_file({"text": tensor(texts), "logs": tensor(logs)}, answer)


if __name__ == "__main__":
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    main(*sys.argv[1:])
