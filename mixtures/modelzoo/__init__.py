"""Model Zoo's view of rows.

Reading its params.yaml, importing its shards, telling its loader a manifest. Never: models or
checkpoints (see `train/modelzoo`).
"""
