"""The `axplain` command."""

from axplain.cli.commands import main

__all__ = ["main"]
