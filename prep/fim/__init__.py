"""Fill-in-the-middle of our own.

On documents and on packed rows, cut between characters or tokens, with its account and spans.
Belongs here: choosing cuts, arranging pieces, sentinels. Never: the original's bit-exact dialect
(next room).
"""
