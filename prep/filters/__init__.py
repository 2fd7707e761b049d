"""The room filters."""
