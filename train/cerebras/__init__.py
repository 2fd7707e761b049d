"""The same training on cstorch: backend, loader, step, follower, proofs, lowering.

Belongs here: whatever imports `cerebras`. Never: Model Zoo, which needs no package of Cerebras.
"""
