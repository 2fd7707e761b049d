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
# Outputs shown here were made by version 0.1.0, whose verdicts did not pool the noise of levels.

# %%
import os

import crystalmix as cm

ablation = cm.open(os.environ.get("CRYSTALMIX_PHASES", "phases"))
print(ablation.factors)

# %% [markdown]
# The forgetting matrix: the held-out loss on each domain after each phase, in CrystalCoder's order
# (language; language and code; code with a little language).

# %%
ablation.plot_forgetting("crystal-3")

# %% [markdown]
# All factors beside each other: valued loss with the standard error over draws.

# %%
ablation.plot_factors()

# %% [markdown]
# One domain gone through again and again for the same share of the run, and R*: how many further
# readings it takes until they are worth little.

# %%
ablation.plot_repetition()

# %% [markdown]
# Was phase 3 worth it? The code in two phases, the last almost alone, against all of it in one, the
# totals being the same; and phases at all against one mixture throughout.

# %%
print(ablation.difference("order", "crystal-3", "crystal", "a third phase", questions=2))
print(ablation.difference("order", "crystal", "mixed", "two phases", questions=2))
