"""The room fim."""
