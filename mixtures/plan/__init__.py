"""What a recipe would take before anything is built.

Rows, tokens, epochs, overlaps, sampling raw files, disk and hours. Never: writing.
"""
