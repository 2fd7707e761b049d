"""The room crystalcoder."""
