"""Audits: whether, when and how often a run consumed what a list names, and the evidence of it.

Belongs here: answers to those outside, and files that prove them. Never: writing into a build or
run.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.audit import audit, evidence, fork, letter

__getattr__, __dir__ = lazy_names(__name__)
