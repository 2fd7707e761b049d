"""The command line, one file a group.

Options, wording, exit codes, and imports of what a command needs when it runs. Belongs here:
click. Never: logic that a notebook could want.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.commands import ablate, answering, csx, data, train, weights
    from crystalmix.train.commands.options import Group

__getattr__, __dir__ = lazy_names(__name__)
