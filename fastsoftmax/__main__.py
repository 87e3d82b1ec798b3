"""``python -m fastsoftmax``."""

import sys

from fastsoftmax._cli import main

if __name__ == "__main__":
    sys.exit(main())
