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
# `CRYSTALMIX_ABLATION` names another folder. Outputs shown here were made by version 0.1.0.

# %%
import os

from IPython.display import display

import crystalmix as cm

ablation = cm.open(os.environ.get("CRYSTALMIX_ABLATION", "ablation"))
print(ablation)

# %% [markdown]
# The design: mixtures far from each other, within what the real run may repeat, domains added up to
# three groups. Then the training loss of each: no spikes, and the mixtures well apart.

# %%
display(ablation.plot_design())
ablation.plot_curves()

# %% [markdown]
# Each run as the law predicts it from all *other* runs, with 90 % intervals. Then what a token of
# one domain (column) is worth for the loss on another (row): "a token of JavaScript is worth …
# tokens of Python".

# %%
display(ablation.plot_left_out())
ablation.plot_transfer()

# %% [markdown]
# Valued loss over the three groups (within a group in the recommended proportions). Inside the red
# line no allowed mixture can be told from the best by one run.

# %%
ablation.plot_loss()

# %% [markdown]
# Code against language: the best mixture for each weight of the two, with its share of code, and
# the mixtures that were checked under new seeds.

# %%
ablation.plot_front()

# %% [markdown]
# The recipe that `crystalmix build` takes (`anyway`: also where the gain may be none).

# %%
ablation.export(ablation.path / "recommended.yaml", anyway=True)
print((ablation.path / "recommended.yaml").read_text("utf-8"))
