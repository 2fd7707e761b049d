# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Phases, FIM, replay and repetition
# Factors other than shares, at the centre mixture and at equal tokens, as `crystalmix ablate phases
# --data RAW --out phases` leaves them; `CRYSTALMIX_PHASES` names another folder. The pictures
# beside it are of proxies of 200,000 parameters and two draws each: small effects drown in them.

# %%
import os
from pathlib import Path

from crystalmix.train.ablations import factor_results as factors
from crystalmix.train.ablations import report as ablationreport
from crystalmix.train.ablations import results as insight
from crystalmix.train.figures import charts as figures

FOLDER = Path(os.environ.get("CRYSTALMIX_PHASES", "phases"))
seen = insight.Insight(FOLDER)
for factor in seen.report["factors"]:
    print(*ablationreport.factor_lines(factor), "", sep="\n")

# %% [markdown]
# The forgetting matrix: the held-out loss on each domain after each phase, in CrystalCoder's order
# (language; language and code; code with a little language).

# %%
phases, losses = factors.forgetting(seen, "crystal-3")
figures.matrix(losses, phases, seen.domains, ("", "held-out domain", "loss, nats per token"))

# %% [markdown]
# All factors beside each other: valued loss with the standard error over draws.

# %%
figures.levels(factors.levels(seen), "valued loss, nats per token")

# %% [markdown]
# One domain gone through again and again for the same share of the run, and R*: how many further
# readings it takes until they are worth little.

# %%
epochs, measured, fitted, told = factors.repeated(seen)
figures.repetition(epochs, measured, fitted, told)

# %% [markdown]
# Was phase 3 worth it? The code in two phases, the last almost alone, against all of it in one, the
# totals being the same; and phases at all against one mixture throughout.

# %%
pairs = (("crystal-3", "crystal", "a third phase"), ("crystal", "mixed", "two phases"))
for level, other, what in pairs:
    print(factors.answer(factors.difference(FOLDER, "order", level, other), what))
