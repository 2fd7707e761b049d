"""`python -m crystalmix`: the command line."""

from crystalmix.cli import main

main(prog_name="crystalmix")
