"""Verification: read a build, or rows without a build, again; report every disagreement.

Belongs here: checks that trust no account, and tables of accounts. Never: repairs.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.verify import account_report, accounts, foreign_shards, kept, verify
    from crystalmix.mixtures.verify.accounts import Check

__getattr__, __dir__ = lazy_names(__name__)
