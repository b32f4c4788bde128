"""`python -m distsynth` is `distsynth`."""

import sys

from distsynth.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
