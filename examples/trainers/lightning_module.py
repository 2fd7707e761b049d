"""Lightning's Trainer: the phase's rows as its loader, a callback that records and seals.

python examples/trainers/lightning_module.py BUILD PHASE OUT   (again, to go on after a kill)
"""

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from torchdata.stateful_dataloader import StatefulDataLoader

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
vocab = phase.manifest.tokenizer.vocab
ledger = cm.Ledger(out / "run", phase)


class Model(lightning.LightningModule):
    """Yours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(vocab, 32), nn.Linear(32, vocab))

    def training_step(self, sample, _):
        labels = sample["labels"].long().masked_fill(sample["mask"] == 0, -100)
        logits = self.net(sample["ids"])
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Record(Callback):
    """Records each step, and seals every fourth with a checkpoint."""

    def on_train_batch_end(self, trainer, module, outputs, sample, _) -> None:
        ledger.feed(sample)
        ledger.record(int(sample["step"]), loss=outputs["loss"].item())
        if ledger.next_step % 4 == 0 or ledger.next_step == phase.manifest.steps:
            file = out / f"step-{ledger.next_step}.ckpt"
            trainer.save_checkpoint(file)
            ledger.seal(file)


lightning.seed_everything(0)
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=phase.manifest.steps,
    callbacks=[Record()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=out,
)
rows = StatefulDataLoader(phase.dataset(), batch_size=None)  # its state is in the checkpoint
if ledger.next_step < phase.manifest.steps:
    trainer.fit(Model(), rows, ckpt_path=ledger.checkpoint and str(ledger.checkpoint))
ledger.close()
print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
