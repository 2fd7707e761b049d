"""The room ablations."""
