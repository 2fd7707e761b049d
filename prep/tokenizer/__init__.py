"""Texts to ids and back.

Loading any tokenizer.json, the fast libraries and the proof that they equal the reference, long
texts, special spellings, special ids at a text's head, places where ids may be cut safely, and
training a small tokenizer. Never: permutation for fill-in-the-middle, packing.
"""
