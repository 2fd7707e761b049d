"""The room laws."""
