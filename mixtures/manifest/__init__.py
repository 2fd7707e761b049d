"""The room manifest."""
