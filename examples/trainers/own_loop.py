"""A loop of one's own, as nanochat's: the lines with `phase` and `ledger` are all that is ours.

python examples/trainers/own_loop.py BUILD PHASE OUT   (again, to go on after a kill)
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
ledger = cm.Ledger(out / "run", phase)

torch.manual_seed(0)
vocab = phase.manifest.tokenizer.vocab
model = nn.Sequential(nn.Embedding(vocab, 32), nn.Linear(32, vocab))  # yours
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
if ledger.checkpoint is not None:
    state = torch.load(ledger.checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])

micro = phase.manifest.batch // 2  # two micro-batches a step
samples = phase.dataset(start=ledger.next_step, micro=micro)
for sample in DataLoader(samples, batch_size=None, num_workers=2):
    labels = sample["labels"].long().masked_fill(sample["mask"] == 0, -100)
    logits = model(sample["ids"])  # (micro, msl, vocab)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    (loss / 2).backward()
    ledger.feed(sample)
    if sample["slots"][-1] == phase.manifest.batch - 1:
        optimizer.step()
        optimizer.zero_grad()
        ledger.record(int(sample["step"]), loss=loss.item())
        if ledger.next_step % 4 == 0 or ledger.next_step == phase.manifest.steps:
            file = out / f"model-{ledger.next_step}.pt"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            ledger.seal(file)
ledger.close()
print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
