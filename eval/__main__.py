"""`python -m sa_eval` is `sa-eval`."""

import sys

from sa_eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
