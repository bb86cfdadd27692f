"""The `axplain` command."""

from axplain.cli.commands import main
from axplain.cli.conformance import check, new_method

main.add_command(check)
main.add_command(new_method)

__all__ = ["main"]
