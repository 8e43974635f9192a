"""`python -m kedit` is the command `kedit`."""

from kedit.cli import main

if __name__ == "__main__":
    main()
