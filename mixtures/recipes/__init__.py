"""The room recipes."""
