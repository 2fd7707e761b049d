"""Megatron-Core's dataset reader over exported rows, held to the plan by a ledger.

crystalmix export-rows BUILD --phase PHASE --to megatron --out OUT/rows
python examples/trainers/megatron_rows.py BUILD PHASE OUT   (again, to go on after a kill)
"""

import sys
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch import nn
from torch.nn import functional as F

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
batch, msl, vocab = phase.manifest.batch, phase.manifest.msl, phase.manifest.tokenizer.vocab
files = sorted((out / "rows").glob("*.idx"))
datasets = [IndexedDataset(str(file.with_suffix(""))) for file in files]
masks = [np.fromfile(f.with_suffix(".mask"), np.uint8).reshape(-1, -(-msl // 8)) for f in files]
starts = np.cumsum([0, *map(len, datasets)])  # each row is one sequence
ledger = cm.Ledger(out / "run", phase)

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(vocab, 32), nn.Linear(32, vocab))  # yours
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
if ledger.checkpoint is not None:
    state = torch.load(ledger.checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])

for step in range(ledger.next_step, phase.manifest.steps):
    places = np.arange(step * batch, (step + 1) * batch)
    which = np.searchsorted(starts, places, side="right") - 1
    rows = [datasets[i][int(p - starts[i])] for i, p in zip(which, places, strict=True)]
    bits = [masks[i][p - starts[i]] for i, p in zip(which, places, strict=True)]
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))  # (batch, msl + 1)
    mask = torch.from_numpy(np.unpackbits(np.stack(bits), axis=1)[:, :msl])
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    logits = model(ids)
    counted = labels.masked_fill(mask == 0, -100)
    loss = F.cross_entropy(logits.flatten(0, 1), counted.flatten(), ignore_index=-100)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ledger.feed(ids, mask, labels)
    ledger.record(step, loss=loss.item())
    if ledger.next_step % 4 == 0 or ledger.next_step == phase.manifest.steps:
        file = out / f"model-{ledger.next_step}.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        ledger.seal(file)
ledger.close()
print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
