"""A loop as torchtitan's: ranks, a stateful loader, distributed checkpoints with all of the state.

torchrun --nproc-per-node 2 examples/trainers/torchtitan_like.py BUILD PHASE OUT   (again, to go on
after a kill, with any number of ranks that divides the batch)
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
dist.init_process_group("gloo")
ledger = cm.Ledger(out / "run", phase, distributed=True)

torch.manual_seed(0)
vocab = phase.manifest.tokenizer.vocab
model = DistributedDataParallel(nn.Sequential(nn.Embedding(vocab, 32), nn.Linear(32, vocab)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
rows = phase.dataset(rank=dist.get_rank(), world=dist.get_world_size())
loader = StatefulDataLoader(rows, batch_size=None)


def everything() -> dict:
    """Return the state to save or to load into."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "loader": loader}


if ledger.checkpoint is not None:
    state = everything()
    dcp.load(state, checkpoint_id=ledger.checkpoint)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )

for sample in loader:
    labels = sample["labels"].long().masked_fill(sample["mask"] == 0, -100)
    logits = model(sample["ids"])  # (batch / ranks, msl, vocab)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ledger.feed(sample)
    ledger.record(int(sample["step"]), loss=loss.item())
    if ledger.next_step % 4 == 0 or ledger.next_step == phase.manifest.steps:
        place = out / f"step-{ledger.next_step}"
        dcp.save(everything(), checkpoint_id=place)
        ledger.seal(place)
ledger.close()
if dist.get_rank() == 0:
    print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
dist.destroy_process_group()
