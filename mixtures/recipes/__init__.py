"""What a user writes.

The recipe and its phases as checked settings, with the bundled YAML files beside them. Never:
doing anything about it.
"""
