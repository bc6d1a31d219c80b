"""`python -m kernelbridge`."""

from __future__ import annotations

import sys

from kernelbridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
