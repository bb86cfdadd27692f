"""`python -m axplain.cli`, where the script is not on the path."""

from axplain.cli import main

main(prog_name="axplain")
