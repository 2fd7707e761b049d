"""Packed rows on disk, and whatever touches them.

The HDF5 shard, its spans and origins, the token blocks that rows are cut from, packing, the loss
mask, the shuffle of rows, and checking rows that others made. Belongs here: whoever touches the
(rows, 3, msl) array or its files. Never: texts, tokenizers, phases or steps.
"""
