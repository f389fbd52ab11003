"""`python -m client.cli`, as make and the containers start it."""

import sys

from client.cli import main

if __name__ == "__main__":
    sys.exit(main())
