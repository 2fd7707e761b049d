"""The sealed plan of a phase and the two orders that it can fix; from it every row of every step.

Belongs here: whatever answers from a manifest alone. Never: building, reading shards, training. It
imports `prep/runtime` only, so that a loader on a cluster needs nothing else.
"""
