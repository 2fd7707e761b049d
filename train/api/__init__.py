"""The Python face: what `import crystalmix as cm` hands on, one function for each command.

Belongs here: signatures for people, typed results, paths as strings. Never: logic (that is in the
rooms below), click, torch before a function that needs it is called.
"""
