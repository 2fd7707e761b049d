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

from crystalmix.mixtures.build import build
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.recipes import recipe
from crystalmix.prep.runtime.tables import table
from crystalmix.train.figures import charts as figures
from crystalmix.train.record import views as trace
from crystalmix.train.trace import forensics

BUILD = Path(os.environ.get("CRYSTALMIX_BUILD", "demo/build"))
RUN = Path(os.environ.get("CRYSTALMIX_RUN", "demo/run"))
RECIPE = Path(os.environ.get("CRYSTALMIX_RECIPE", "demo/recipe.yaml"))
DATA = Path(os.environ.get("CRYSTALMIX_DATA", "demo/raw"))
OUT = Path(os.environ.get("CRYSTALMIX_OUT", "demo/forensics"))
traced = trace.connect(BUILD, RUN)
phase = list(traced.manifests)[-1]
losses = traced.rows("SELECT phase, part, avg(loss) AS loss FROM losses GROUP BY ALL ORDER BY ALL")
print(
    *table(
        [[r["phase"], r["part"], f"{r['loss']:.3f}"] for r in losses],
        ["phase", "part", "mean loss"],
    ),
    sep="\n",
)

# %% [markdown]
# The loss of the last phase, and the steps that stand out by their robust z (the highest, if none).

# %%
told, steps = forensics.standing_out(traced, phase)
figures.trace(told["steps"], told["losses"], steps)

# %% [markdown]
# What is in those steps more often than in the rest of the phase (Fisher's exact test, a twentieth
# of false findings among them), and the longest document pieces, with part, epoch and FIM.

# %%
found = forensics.over_represented(traced, phase, steps)
rows = [
    [r["property"], r["value"], r["inside"], r["every"], f"{r['lift']:.1f}", f"{r['p']:.1e}"]
    for r in found[:10]
]
print(*table(rows, ["property", "value", "in steps", "in phase", "lift", "p"]), "", sep="\n")
pieces = forensics.pieces(traced, phase, steps)
print(*table([[*piece.values()] for piece in pieces], list(pieces[0])), sep="\n")

# %% [markdown]
# Replayed: the rows of those steps read again are, bit for bit, those that were trained on.

# %%
again = forensics.replayed(traced, phase, steps)
print(*table([[*one.values()] for one in again], list(again[0])), sep="\n")

# %% [markdown]
# A drop list of documents that stand out (or else of those in the steps), and the build without
# them: what changes in each manifest.

# %%
keys = [row["value"] for row in found if row["property"] == "document"][:3]
keys = keys or forensics.documents_of(traced, phase, steps)[:3]
print(forensics.drop_list(traced, keys, OUT / "drop.txt"), "texts dropped")
build.build(forensics.without(recipe.load(RECIPE), OUT / "drop.txt"), DATA, OUT / "build")
print(*report.differences(BUILD, OUT / "build")[:12], sep="\n")
