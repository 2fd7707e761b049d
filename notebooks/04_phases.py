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
# # 04 · Was the third phase worth it, and what does FIM cost?
# Questions of CrystalCoder's paper, as `crystalmix ablate paper --data RAW --out paper` leaves
# them; `CRYSTALMIX_PHASES` names another folder. First the design, and the power that it was
# chosen by: eight draws of weights and rows, which all levels share.

# %%
import os

import crystalmix as cm

print(*cm.ablation_cost("paper", workers=2).lines(), sep="\n")
ablation = cm.open(os.environ.get("CRYSTALMIX_PHASES", "paper"))
sizes = list(dict.fromkeys(factor.size for factor in ablation.report.factors))
print("", ablation.factors, sep="\n")

# %% [markdown]
# The third phase: CrystalCoder's three phases against its first two, the second as much longer;
# equal compute, published shares, the learning rate falling over the last fifth of both. With
# eight pairs and intervals for eight questions, it cost language .047 nats [.024, .070] at 0.1M
# and .044 [.013, .075] at 0.3M; on code it was better by .028 [.006, .050] at 0.1M, and cannot be
# told at 0.3M (-.025 ± .037). Of the value asked (language .37, code .63) it cannot be told at
# either size: .0 ± .018 and .0 ± .032, where .024 and .043 would have been seen. At 0.1M code gains
# what language loses; at 0.3M only what language loses can be told.

# %%
for size in sizes:
    for target in ("valued", "language", "code", "python"):
        what = f"third phase, {target}, {size}"
        asked = {"questions": 4 * len(sizes), "target": target, "size": size}
        print(ablation.difference("third_phase", "with", "without", what, **asked))

# %% [markdown]
# The loss on each domain after each of the three phases at 0.1M, the mean over eight draws.

# %%
ablation.plot_forgetting("third_phase")

# %% [markdown]
# FIM: what a rate costs left to right, and what it brings on middles between a prefix and a
# suffix. Each draw reads rows of its own. With eight pairs and intervals for eight questions, a
# rate of .9 costs code .034 nats [.012, .057] at 0.1M; all else cannot be told: .3 on code +.021 ±
# .022, middles -.032 ± .037 at .3 and -.030 ± .037 at .9; at 0.3M, code +.011 ± .038 and +.036 ±
# .037, middles -.011 ± .042 and +.002 ± .042. So small proxies, after .2 M tokens, show that a
# high rate is not free left to right, and do not show what it is for.

# %%
rates = [level.level for level in ablation.report.factors[0].levels if level.level != "0"]
for size in sizes:
    for target in ("code", "infilling"):
        for rate in rates:
            what = f"FIM at {rate} against none, {target}, {size}"
            asked = {"questions": 4 * len(rates), "target": target, "size": size}
            print(ablation.difference("fim", rate, "0", what, **asked))

# %% [markdown]
# All levels beside each other: valued loss, the mean of eight draws and its standard error, .004 to
# .011 nats. It holds what levels of one draw share, which is why levels are compared draw by draw
# above, not here.

# %%
ablation.plot_factors()
