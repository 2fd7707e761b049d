"""The command line, one file a group.

Options, wording, exit codes, and imports of what a command needs when it runs. Belongs here:
click. Never: logic that a notebook could want.
"""
