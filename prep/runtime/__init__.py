"""What every other room stands on and nothing else.

The error tree, named random draws and the keyed permutation, receipts, files that are whole or not
there, worker processes and progress, the scratch database, checked YAML, plain-text tables and the
type aliases. Belongs here: code that knows no source, token, row, recipe or model. Never: anything
that names a domain concept, and nothing that only one room uses (then it lives in that room).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.runtime import (
        atomic_files,
        constraints,
        database,
        frames,
        machine,
        permutation,
        randomness,
        receipts,
        records,
        tables,
        workers,
        yaml_settings,
    )
    from crystalmix.prep.runtime.database import Connection
    from crystalmix.prep.runtime.errors import (
        BrokenFile,
        ClusterError,
        CrystalmixError,
        DamageError,
        DivergenceError,
        InputError,
        MachineError,
        NoColumn,
        RecipeError,
        RefusalError,
        StaleError,
        UsageError,
        WorkerError,
    )
    from crystalmix.prep.runtime.permutation import Permutation
    from crystalmix.prep.runtime.types import Column, Content, Json, Strict, Within, frozen
    from crystalmix.prep.runtime.workers import Fanout

__getattr__, __dir__ = lazy_names(__name__)
