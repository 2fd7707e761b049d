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
# # 02 · From counts to a mixture
# An ablation looked at, as `crystalmix ablate four-groups --data RAW --out ablation` leaves it;
# `CRYSTALMIX_ABLATION` names another folder.

# %%
import os
from pathlib import Path

from IPython.display import display

from crystalmix.train.ablations import export_recipe as decision
from crystalmix.train.ablations import report as ablationreport
from crystalmix.train.ablations import results as insight
from crystalmix.train.figures import charts as figures
from crystalmix.train.figures import ternary

FOLDER = Path(os.environ.get("CRYSTALMIX_ABLATION", "ablation"))
seen = insight.Insight(FOLDER)
print(*ablationreport.report_lines(seen.report), sep="\n")

# %% [markdown]
# The design: mixtures far from each other, within what the real run may repeat, domains added up to
# three groups. Then the training loss of each: no spikes, and the mixtures well apart.

# %%
groups = seen.groups()
points = {role: ternary.grouped(seen.shares(role), seen.domains, groups) for role in seen.roles}
display(ternary.simplex(points, list(groups)))
lines, strength = seen.curves()
figures.curves(lines, "step", "training loss, nats per token", strength)

# %% [markdown]
# Each run as the law predicts it from all *other* runs, with 90 % intervals. Then what a token of
# one domain (column) is worth for the loss on another (row): "a token of JavaScript is worth …
# tokens of Python".

# %%
display(figures.agreement(seen.left_out(), "nats per token"))
worth, told = (
    seen.fit.transfer(),
    ("held-out loss on", "a token of", "worth, in tokens of the best"),
)
figures.matrix(worth, seen.domains, seen.domains, told)

# %% [markdown]
# Valued loss over the three groups (within a group in the recommended proportions). Inside the red
# line no allowed mixture can be told from the best by one run.

# %%
grid, values, flat, marked = seen.heat()
unit = "valued loss, nats per token"
ternary.heat(grid, values, list(groups), flat=flat, marked=marked, unit=unit)

# %% [markdown]
# Code against language: the best mixture for each weight of the two, with its share of code, and
# the mixtures that were checked under new seeds.

# %%
figures.front(seen.front(), "loss on language, nats per token", "loss on code, nats per token")

# %% [markdown]
# The recipe that `crystalmix build` takes (`anyway`: also where the gain may be none).

# %%
decision.export(FOLDER, FOLDER / "recommended.yaml", anyway=True)
print((FOLDER / "recommended.yaml").read_text("utf-8"))
