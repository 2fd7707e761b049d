"""The room readers."""
