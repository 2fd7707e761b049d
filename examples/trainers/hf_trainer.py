"""Hugging Face's Trainer: one method for the rows, one for what was fed, a callback for steps.

python examples/trainers/hf_trainer.py BUILD PHASE OUT   (again, to go on after a kill)
"""

import sys
from pathlib import Path

from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import crystalmix as cm

build, name, out = cm.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
phase = build.phases[name]
ledger = cm.Ledger(out / "run", phase)


class Rows(Trainer):
    """Feeds the rows of a phase, and takes down which."""

    def get_train_dataloader(self):
        rows = phase.dataset(start=ledger.next_step, micro=self.args.per_device_train_batch_size)
        return DataLoader(rows, batch_size=None)

    def compute_loss(self, model, inputs, *_, **__):
        if model.training:  # not in an evaluation
            ledger.feed(inputs)
        labels = inputs["labels"].long().masked_fill(inputs["mask"] == 0, -100)
        logits = model(input_ids=inputs["ids"]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return loss / self.args.gradient_accumulation_steps


class Record(TrainerCallback):
    """Records steps, and seals them with the Trainer's checkpoints."""

    def on_step_end(self, args, state, control, **_):
        ledger.record(state.global_step - 1)

    def on_save(self, args, state, control, **_):
        ledger.seal(Path(args.output_dir, f"checkpoint-{state.global_step}"))


settings = TrainingArguments(
    output_dir=str(out / "checkpoints"),
    per_device_train_batch_size=phase.manifest.batch // 2,
    gradient_accumulation_steps=2,
    max_steps=phase.manifest.steps,
    save_steps=4,
    learning_rate=0.01,
    ignore_data_skip=True,  # the rows begin where the ledger stands
    use_cpu=True,
    report_to=[],
    disable_tqdm=True,
)
shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=phase.manifest.tokenizer.vocab, **shape, **heads))
trainer = Rows(model, settings, callbacks=[Record()])
trainer.train(resume_from_checkpoint=ledger.checkpoint and str(ledger.checkpoint))
ledger.close()
print(*cm.verify(build.path, run=out / "run").lines(), sep="\n")
