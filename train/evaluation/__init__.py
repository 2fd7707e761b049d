"""Held-out loss and samples in the loop, and the refusal to evaluate on what is trained on.

Never: choosing documents (that is `prep/filters`).
"""
