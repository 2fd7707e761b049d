"""The room runfile."""
