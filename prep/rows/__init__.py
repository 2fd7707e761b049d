"""The room rows."""
