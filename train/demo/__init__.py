"""The demo and the documents that it gathers.

Nothing imports it but its command.
"""
