"""`python -m kvshare`."""

from kvshare.cli import main

main(prog_name="kvshare")
