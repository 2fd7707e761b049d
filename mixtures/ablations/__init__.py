"""Which mixtures small models are to compare.

The spec, design, trials, factors, the pool of rows they share, the small manifests. Belongs here:
everything of an ablation before a model is trained. Never: torch.
"""
