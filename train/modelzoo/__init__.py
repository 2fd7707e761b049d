"""Model Zoo's view of a run.

Writing its params.yaml, harvesting its runs, converting its checkpoints and names. Never:
`cerebras` packages.
"""
