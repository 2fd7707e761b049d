"""The room trace."""
