"""The room verify."""
