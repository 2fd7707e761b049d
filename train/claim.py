"""Claims: what a phase's training follows from, and what does not fit together."""

from mixtures.manifest import Manifest
from prep.errors import RecipeError, RefusalError
from train.run import Run


def check_fit(run: Run, manifest: Manifest, processes: int) -> None:
    """Refuse a model too small for the manifest's rows or tokens, and batches that can't be cut."""
    if manifest.tokenizer["vocab"] > run.model.vocab_size:
        raise RecipeError(
            f"model.vocab_size: must be at least {manifest.tokenizer['vocab']} for phase "
            f"{manifest.phase}'s tokenizer, got {run.model.vocab_size}"
        )
    if manifest.msl > run.model.max_position_embeddings:
        raise RecipeError(
            f"model.max_position_embeddings: must be at least {manifest.msl} for phase "
            f"{manifest.phase}'s rows, got {run.model.max_position_embeddings}"
        )
    if manifest.batch % processes:
        raise RefusalError(
            f"phase {manifest.phase}: its batch of {manifest.batch} rows can't be shared evenly "
            f"by {processes} processes; start a number that divides it"
        )
    each, size = manifest.batch // processes, run.settings.micro_batch
    if size is not None and each % size:
        whose = f" that each of {processes} processes has" if processes > 1 else ""
        raise RefusalError(
            f"runconfig.micro_batch: must divide the batch of {each}{whose}, got {size}"
        )
