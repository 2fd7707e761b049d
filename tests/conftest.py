"""What holds for every test: its own cache of proofs, and no time limits on shared machines."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True, scope="session")
def caches() -> Iterator[None]:
    """Keep the user's own cache out of the tests, and the tests out of it."""
    with tempfile.TemporaryDirectory(prefix="crystalmix-cache-") as folder:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = folder
        yield
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
