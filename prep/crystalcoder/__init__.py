"""Bit-exact replicas of the original's data tools.

Row-level FIM with its faults, LMData's pieces, its shuffle, its JSON lines. Belongs here: code
whose only specification is what another program does. Never: anything our own path needs in order
to run; nothing below imports this room.
"""
