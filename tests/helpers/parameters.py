"""The published training parameters, where they lie beside the project."""

import os
from pathlib import Path

import pytest

PARAMS = Path(__file__).parents[2].parent / "shared" / "reference" / "params"


def published(number: int) -> Path:
    """Return a published params.yaml; skip without it, but fail in CI."""
    path = PARAMS / f"phase{number}.yaml"
    if not path.exists():
        reason = f"{path}: no published parameters here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path
