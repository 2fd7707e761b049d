"""What a run writes and how it is read again.

The run's folder, ledger, skips, metrics, and the SQL views over build and run. Belongs here: the
formats of a run. Never: torch; a run can be looked at without it.
"""
