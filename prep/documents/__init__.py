"""The room documents."""
