"""Steps of a manifest through model and optimiser.

Session, loop, batches, gradients, placement, checkpoints, claims; and the forecast of all that.
Never: another backend (see `train/cerebras`).
"""
