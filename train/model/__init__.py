"""The model as mathematics.

Decoder, head and loss, optimiser and schedule, and how processes add up. Belongs here: torch
without files. Never: manifests, folders, settings files.
"""
