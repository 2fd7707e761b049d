"""Reading a build again and telling every disagreement; rows that no build made, too.

Belongs here: checks that trust no account. Never: mending.
"""
