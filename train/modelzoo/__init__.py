"""The room modelzoo."""
