"""``python -m entk`` is the command ``entk``."""

import sys

from entk._cli import main

if __name__ == "__main__":
    sys.exit(main())
