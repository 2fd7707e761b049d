# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A first look at a build and a run
# Point it at what `make demo` left (or at a build and run of your own) by the two variables
# `CRYSTALMIX_BUILD` and `CRYSTALMIX_RUN`.

# %%
import os
from pathlib import Path

from mixtures import report
from train import trace

BUILD = Path(os.environ.get("CRYSTALMIX_BUILD", "demo/build"))
RUN = Path(os.environ.get("CRYSTALMIX_RUN", "demo/run"))
traced = trace.connect(BUILD, RUN)

# %% [markdown]
# What each phase asked for and what its manifest fixes.

# %%
for manifest in report.read_manifests(BUILD):
    print(*report.manifest_lines(manifest), "", sep="\n")

# %% [markdown]
# What was dropped on the way, and why.

# %%
print(*report.account_lines(BUILD), sep="\n")

# %% [markdown]
# Loss of each part over the run: the first and the last tenth of each phase.

# %%
losses = traced.rows(
    """
    WITH t AS (SELECT *, ntile(10) OVER (PARTITION BY phase ORDER BY step) AS tenth FROM losses)
    SELECT phase, part, sum(tokens) AS tokens,
           round(avg(loss) FILTER (tenth = 1), 3) AS first_tenth,
           round(avg(loss) FILTER (tenth = 10), 3) AS last_tenth
    FROM t GROUP BY phase, part ORDER BY phase, part
    """
)
print(*report.table([list(row.values()) for row in losses], list(losses[0])), sep="\n")

# %% [markdown]
# The documents that were seen most often, and in which phases.

# %%
seen = traced.rows(
    """
    SELECT coalesce(d.name, d.file || '#' || d.record) AS document, p.source,
           count(DISTINCT (p.phase, p.step)) AS steps, sum(p.stop - p.start) AS tokens,
           string_agg(DISTINCT p.phase, ' ' ORDER BY p.phase) AS phases
    FROM pieces p JOIN documents d USING (source, document)
    GROUP BY ALL ORDER BY steps DESC, document LIMIT 10
    """
)
print(*report.table([list(row.values()) for row in seen], list(seen[0])), sep="\n")
