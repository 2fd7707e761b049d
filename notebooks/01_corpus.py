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
# # 01 · A corpus looked at
# What a build holds and what its phases take of it. Point it at a build of your own with the
# variable `CRYSTALMIX_BUILD` (by default what `make demo` left).

# %%
import os
from pathlib import Path

from crystalmix.mixtures.build import account_report
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.prep.runtime.tables import table
from crystalmix.train.figures import charts as figures
from crystalmix.train.record import views as trace
from crystalmix.train.trace import corpus

BUILD = Path(os.environ.get("CRYSTALMIX_BUILD", "demo/build"))
traced = trace.connect(BUILD)

# %% [markdown]
# Documents, tokens and bytes of each domain; licences where the recipe keeps them.

# %%
domains = corpus.domains(traced)
print(*table([list(row.values()) for row in domains], list(domains[0])), sep="\n")
licences = corpus.licences(traced)
if licences:
    print("", *table([[*row.values()] for row in licences], list(licences[0])), sep="\n")

# %% [markdown]
# What was dropped on the way (duplicates among it), and how long documents are.

# %%
print(*account_report.account_lines(BUILD), sep="\n")

# %% [markdown]
# What each phase asks and what its manifest fixes.

# %%
for manifest in read_manifests(BUILD):
    print(*report.manifest_lines(manifest), "", sep="\n")

# %% [markdown]
# Known mixtures over these domains. On the right: the domain that a run of as many tokens as there
# are would repeat most often, and how often.

# %%
tokens = {row["domain"]: row["tokens"] for row in domains}
target = float(sum(tokens.values()))
mixtures = corpus.compared(tokens, target)
notes = {}
for name, shares in mixtures.items():
    epochs = corpus.repeats(shares, tokens, target)
    most = max(epochs, key=lambda domain: epochs[domain])
    notes[name] = f"{most} × {epochs[most]:.1f}"
figures.bars(mixtures, notes)

# %% [markdown]
# Where the tokens come from and where they go: source, domain, phase.

# %%
first, second = corpus.links(traced)
figures.flow(first, second, ("source", "domain", "phase"))
