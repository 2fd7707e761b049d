"""The Python face: what `import crystalmix as cm` hands on, one function for each command.

Belongs here: signatures for people, typed results, paths as strings. Never: logic (that is in the
rooms below), click, torch before a function that needs it is called.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.api import (
        ablations,
        answering,
        chat,
        checks,
        copies,
        data,
        ledgers,
        modelzoo,
        opened,
        plots,
        purges,
        runs,
    )
    from crystalmix.train.api.ablations import Ablation
    from crystalmix.train.api.chat import Reply
    from crystalmix.train.api.checks import Differences, ShardVerdict
    from crystalmix.train.api.copies import Copy
    from crystalmix.train.api.data import Collected
    from crystalmix.train.api.ledgers import Ledger
    from crystalmix.train.api.opened import Build, Phase, Run
    from crystalmix.train.api.runs import Forecast

__getattr__, __dir__ = lazy_names(__name__)
