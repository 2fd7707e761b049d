"""Training from manifests, with a ledger of what each step consumed.

The package is `cm.train` too: calling it trains, as `crystalmix.train.api.runs.train` documents.
"""

import sys
from types import ModuleType


class _Train(ModuleType):
    """A package that can be called: a floor of the house and a function have the same name."""

    def __call__(self, *args: object, **settings: object) -> object:
        from crystalmix.train.api import runs

        return runs.train(*args, **settings)  # pyright: ignore[reportArgumentType]


sys.modules[__name__].__class__ = _Train
