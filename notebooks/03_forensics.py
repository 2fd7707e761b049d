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
# # 03 · From a spike to its documents
# A run looked at, by default what `make demo` left: `CRYSTALMIX_BUILD`, `CRYSTALMIX_RUN`,
# `CRYSTALMIX_RECIPE` and `CRYSTALMIX_DATA` name others; what is made here goes to `CRYSTALMIX_OUT`.
# The numbers in the text are of the outputs shown. First the mean loss of each part, and the 90 %
# interval of that mean by its scatter over steps, in which the fall of the loss is included: of
# phase 3, `python` has 6.00 ± .06 (20 steps), `javascript` 6.36 ± .13 (20).

# %%
import os
from pathlib import Path

import crystalmix as cm

BUILD, RUN, RECIPE, DATA, OUT = (
    Path(os.environ.get(f"CRYSTALMIX_{name}", place))
    for name, place in (
        ("BUILD", "demo/build"),
        ("RUN", "demo/run"),
        ("RECIPE", "demo/recipe.yaml"),
        ("DATA", "demo/raw"),
        ("OUT", "demo/forensics"),
    )
)
run = cm.open(RUN, build=BUILD)
phase = list(run.build.phases)[-1]
mean = "avg(loss) AS 'mean loss', 1.645 * stddev_samp(loss) / sqrt(count(*)) AS '± of 90 %'"
columns = f"phase, part, count(*) AS steps, sum(tokens) AS tokens, {mean}"
print(run.sql(f"SELECT {columns} FROM losses GROUP BY ALL ORDER BY ALL"))

# %% [markdown]
# The loss of the last phase, and the steps that stand out by their robust z (the highest, if none):
# one of 20, step 5.

# %%
steps = run.standing_out(phase).spikes
run.plot_losses(phase)

# %% [markdown]
# What is in those steps more often than in the rest of the phase (Fisher's exact test, a twentieth
# of false findings among them), and the longest document pieces, with part, epoch and FIM. Nothing
# is found: 10 rows of 200 are few, and step 5 may be the highest of 20 by chance.

# %%
found = run.over_represented(phase, steps)
print(found[:10], "", sep="\n")
print(run.pieces(phase, steps))

# %% [markdown]
# Replayed: the rows of those steps read again are, bit for bit, those that were trained on, all 10
# of the one step.

# %%
print(run.replay(phase, steps))

# %% [markdown]
# A drop list of documents that stand out (or else of those in the steps), and the build without
# them: what changes in each manifest. Without 3 texts 252 of phase 2's 400 positions hold another
# row: all 252 of the part that had them, and none of the other two parts'.

# %%
keys = [row["value"] for row in found.content() if row["property"] == "document"][:3]
print(run.drop_list(OUT / "drop.txt", keys, phase=phase, steps=steps), "texts dropped")
cm.build(RECIPE, OUT / "build", data=DATA, without=OUT / "drop.txt")
print(*cm.diff(BUILD, OUT / "build").lines()[:12], sep="\n")
