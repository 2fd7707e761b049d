"""Ablations, carried out and concluded.

Proxies, stacks, measuring, tables, conclusions, report, and the recipe that follows. Never: the
design (see `mixtures/ablations`), the statistics (see `mixtures/laws`).
"""
