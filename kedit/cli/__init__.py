"""The command `kedit`."""

from kedit.cli.main import main

__all__ = ["main"]
