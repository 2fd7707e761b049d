"""Train a small Llama-style BPE tokenizer (byte fallback, dummy space) with the FIM specials."""

from collections import Counter
from collections.abc import Iterable, Sequence

import orjson
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

CONTROLS = ("<unk>", "<s>", "</s>")
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
# A word with the spaces before it, a run of spaces, or a line break: where training may merge.
WORDS = "▁*[^▁\\n]+|▁+|\\n"
SPACE = "▁"  # a space is a space, however little text there is
MOST_CHARACTERS = 256


def train(texts: Iterable[str], vocab: int) -> bytes:
    """Train on texts and return a tokenizer.json of `vocab` pieces and the four FIM specials.

    The same texts give the same bytes; they are held in memory. Characters beyond the 256 most
    frequent ones are spelt in bytes.

    The layout is that of the LLaMA tokenizer: ids 0 to 2 unknown, BOS and EOS, then 256 bytes,
    then pieces; no pre-tokenizer, a dummy space before each text.
    """
    model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    model.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    corpus = list(texts)
    alphabet = _alphabet(corpus)
    own = [*CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=own,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),  # left to itself it takes any of equally frequent ones
    )
    model.train_from_iterator(corpus, trainer)
    content = orjson.loads(model.to_str())
    content["pre_tokenizer"] = None
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    first = len(content["model"]["vocab"])
    added = [*enumerate(CONTROLS), *enumerate(FIM, start=first)]
    content["added_tokens"] = [_added(number, name) for number, name in added]
    return orjson.dumps(content)


def _alphabet(texts: Sequence[str]) -> list[str]:
    """Return the most frequent characters, of equally frequent ones the first, and the space."""
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(text)
    counted[SPACE] += counted.pop(" ", 0)
    often = sorted(counted, key=lambda c: (c != SPACE, -counted[c], c))
    return sorted(often[:MOST_CHARACTERS])


def _added(number: int, name: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}
