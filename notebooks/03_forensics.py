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
print(run.sql("SELECT phase, part, avg(loss) AS 'mean loss' FROM losses GROUP BY ALL ORDER BY ALL"))

# %% [markdown]
# The loss of the last phase, and the steps that stand out by their robust z (the highest, if none).

# %%
steps = run.standing_out(phase).spikes
run.plot_losses(phase)

# %% [markdown]
# What is in those steps more often than in the rest of the phase (Fisher's exact test, a twentieth
# of false findings among them), and the longest document pieces, with part, epoch and FIM.

# %%
found = run.over_represented(phase, steps)
print(found[:10], "", sep="\n")
print(run.pieces(phase, steps))

# %% [markdown]
# Replayed: the rows of those steps read again are, bit for bit, those that were trained on.

# %%
print(run.replay(phase, steps))

# %% [markdown]
# A drop list of documents that stand out (or else of those in the steps), and the build without
# them: what changes in each manifest.

# %%
keys = [row["value"] for row in found.content() if row["property"] == "document"][:3]
print(run.drop_list(OUT / "drop.txt", keys, phase=phase, steps=steps), "texts dropped")
cm.build(RECIPE, OUT / "build", data=DATA, without=OUT / "drop.txt")
print(*cm.diff(BUILD, OUT / "build").lines()[:12], sep="\n")
