"""The room trainer."""
