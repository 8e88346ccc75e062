"""`python -m walpool`: the command line of `walpool.cli`."""

import sys

from walpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
