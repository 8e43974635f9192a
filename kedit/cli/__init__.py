"""The command `kedit`."""

import sys

from kedit.runtime.platforms import unsupported

if (why := unsupported()) is not None:  # before the imports that would fail
    sys.stderr.write(f"kedit: error: {why}\n")
    raise SystemExit(2)

from kedit.cli.main import main

__all__ = ["main"]
