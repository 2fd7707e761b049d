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

import crystalmix as cm

build = cm.open(os.environ.get("CRYSTALMIX_BUILD", "demo/build"))

# %% [markdown]
# Documents, tokens and bytes of each domain; licences where the recipe keeps them.

# %%
print(build.domains)
if len(build.licences):
    print("", build.licences, sep="\n")

# %% [markdown]
# What each phase asks and what its manifest fixes; then what was dropped on the way (duplicates
# among it), and how long documents are.

# %%
print(build.overview)

# %% [markdown]
# Known mixtures over these domains. On the right: the domain that a run of as many tokens as there
# are would repeat most often, and how often.

# %%
build.plot_mixtures()

# %% [markdown]
# Where the tokens come from and where they go: source, domain, phase.

# %%
build.plot_flow()
