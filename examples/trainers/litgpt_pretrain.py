"""litgpt's own `pretrain`: a data module whose rows are taken down when the next ones are fetched.

python examples/trainers/litgpt_pretrain.py BUILD PHASE OUT   (again, to go on after a kill)
"""

import sys
from pathlib import Path

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
batch, msl = phase.manifest.batch, phase.manifest.msl
ledger = cm.Ledger(out / "run", phase)
sys.argv[1:] = ["tiny"]  # litgpt reads them again for the settings that it saves


class Tokens(IterableDataset):
    """Rows as litgpt takes them, msl + 1 tokens; the state is that of the phase's dataset."""

    def __init__(self) -> None:
        self.rows = phase.dataset()

    def __iter__(self):
        for sample in self.rows:
            yield torch.cat([sample["ids"], sample["labels"][:, -1:]], dim=1)
            ledger.feed(sample)  # litgpt asks for the next rows: these are trained on
            ledger.record(int(sample["step"]))
            saved = out / "litgpt" / f"step-{ledger.next_step:08d}" / "lit_model.pth"
            if saved.exists():
                ledger.seal(saved)

    def state_dict(self):
        return self.rows.state_dict()

    def load_state_dict(self, state):
        self.rows.load_state_dict(state)


class Phase(DataModule):
    """The phase's rows."""

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None, **_):
        pass

    def train_dataloader(self):
        return StatefulDataLoader(Tokens(), batch_size=None)

    def val_dataloader(self):
        return DataLoader([torch.zeros(1, msl + 1, dtype=torch.int32)] * 2, batch_size=None)


if ledger.next_step < phase.manifest.steps:
    setup(
        "tiny",
        Config(
            block_size=msl,
            padded_vocab_size=phase.manifest.tokenizer.vocab,
            n_layer=1,
            n_head=2,
            n_embd=16,
        ),
        out_dir=out / "litgpt",
        precision="32-true",
        resume=ledger.checkpoint or False,
        data=Phase(),
        train=TrainArgs(
            save_interval=2,
            global_batch_size=batch,
            micro_batch_size=batch,
            max_tokens=phase.manifest.steps * batch * msl,
            max_norm=1.0,
            max_seq_length=msl,
            lr_warmup_steps=2,
        ),
        eval=EvalArgs(interval=1000, max_iters=1, final_validation=False),
        devices=1,
        logger_name="csv",
    )
ledger.close()
print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
