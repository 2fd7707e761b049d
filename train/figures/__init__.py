"""Pictures from plain numbers: charts, triangles, a run's plot.

Belongs here: matplotlib. Never: reading a folder that is not handed in.
"""
