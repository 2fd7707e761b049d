"""What a user writes to train.

Run file, its data sections, cluster settings, and the settings dataclasses. Never: doing anything
about it.
"""
