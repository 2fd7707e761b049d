"""The room build."""
