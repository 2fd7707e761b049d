"""Rows for any training loop, and a ledger that any loop can keep.

Belongs here: what stands between a manifest and a training script that is not ours; numpy alone,
but for `datasets`, which needs torch. Never: a model, a run file, our own trainer.
"""
