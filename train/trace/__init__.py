"""Questions to a run and their answers.

Steps, documents, ratios, repeats, spikes, findings, forensics, overviews. Belongs here: reading.
Never: writing into a build or run.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.trace import (
        corpus,
        findings,
        forensics,
        overview,
        questions,
        ratios,
        repeats,
        run_overview,
        spikes,
        sql,
    )
    from crystalmix.train.trace.answers import FIM, Answer, Grid, Lines, Table, Verdict, cell
    from crystalmix.train.trace.findings import Findings
    from crystalmix.train.trace.forensics import StandingOut
    from crystalmix.train.trace.repeats import Repeats
    from crystalmix.train.trace.spikes import Spikes, SpikeSettings

__getattr__, __dir__ = lazy_names(__name__)
