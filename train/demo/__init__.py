"""The demo and the documents that it gathers.

Nothing imports it but its command.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.demo import demo

__getattr__, __dir__ = lazy_names(__name__)
