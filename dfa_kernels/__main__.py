"""`python -m dfa_kernels`."""

import sys

from dfa_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
