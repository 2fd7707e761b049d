"""Pages for people: one self-contained HTML file of a build, a run or an ablation.

Belongs here: what stands on a page, read from the outputs of commands, and its templates. Never: a
number that no `--json` output has, a script or style from elsewhere, writing into a build or run.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.pages import evidence, report_page, serve
    from crystalmix.train.pages.report_page import Report

__getattr__, __dir__ = lazy_names(__name__)
