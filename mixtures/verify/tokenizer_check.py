"""Check of a build's copy of its tokenizer against the identity that manifests have."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from crystalmix.mixtures.build.context import tokenizer_identity
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings


def faults(path: Path, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Yield where a tokenizer is not the one that phases were built with."""
    if manifests and all(manifest.imported for manifest in manifests.values()):
        return
    if not path.exists():
        yield f"{path}: is missing; restore the tokenizer of this build"
        return
    try:
        identity = tokenizer_identity(Tokenizer(TokenizerSettings(str(path)), path.read_bytes()))
    except (CrystalmixError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"{path}: can't be loaded ({error}); restore the tokenizer of this build"
        return
    for name, manifest in manifests.items():
        for key in ("fingerprint", "canary", "vocab"):
            if (sealed := getattr(manifest.tokenizer, key)) != identity[key]:
                yield (
                    f"{path}: has another {key} than phase {name} was built with "
                    f"({identity[key]}, manifest has {sealed})"
                )
