"""What every other room stands on and nothing else.

The error tree, named random draws and the keyed permutation, receipts, files that are whole or not
there, worker processes and progress, the scratch database, checked YAML, plain-text tables and the
type aliases. Belongs here: code that knows no source, token, row, recipe or model. Never: anything
that names a domain concept, and nothing that only one room uses (then it lives in that room).
"""
