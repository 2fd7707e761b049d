"""The room cerebras."""
