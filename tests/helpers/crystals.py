"""What the tests of the model and the optimiser share: two shapes, and the golden folder."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crystalmix.train.model.crystal import Crystal, ModelSettings, initialise

GOLDEN = Path(__file__).parents[2].parent / "shared" / "reference" / "golden" / "model"

PUBLISHED = ModelSettings(
    vocab_size=32032,
    hidden_size=4096,
    num_hidden_layers=32,
    num_heads=32,
    filter_size=10922,
    max_position_embeddings=2048,
    rotary_dim=32,
    embeddings_scale=14.6,
    output_logits_scale=0.13875,
    initializer_std=0.01825,
    output_initializer_std=0.00228125,
)
TINY = replace(  # the shape of the golden model
    PUBLISHED,
    vocab_size=211,
    hidden_size=64,
    num_hidden_layers=2,
    num_heads=4,
    filter_size=170,
    max_position_embeddings=48,
    rotary_dim=4,
)


def golden_folder() -> Path:
    """Return the folder of the original model's numbers; skip without it, but fail in CI."""
    if not GOLDEN.is_dir():
        reason = f"{GOLDEN}: no golden numbers here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return GOLDEN


def fresh(settings: ModelSettings = TINY, seed: int = 1) -> Crystal:
    """Build and initialise a model."""
    model = Crystal(settings)
    initialise(model, seed)
    return model
