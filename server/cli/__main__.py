"""`python -m server.cli`, as make, the containers and a run's simulations start it."""

import sys

from server.cli import main

if __name__ == "__main__":
    sys.exit(main())
