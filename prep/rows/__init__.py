"""Rows: packed rows of tokens on disk, the (rows, 3, msl) arrays and their files.

Belongs here: HDF5 shards, span and origin tables, token blocks, packing, shuffling, checks
of foreign rows. Never: texts, tokenizers, phases, steps.
"""
