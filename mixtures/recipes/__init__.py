"""What a user writes to build: recipes and phases.

The recipe and its phases as checked settings, with the bundled YAML files beside them. Never:
doing anything about it.
"""
