"""Lets one site in or shuts it out, where SuperLink's Control API can be reached.

    python -m server.deploy.register --superlink superlink:8000 --ca ca.crt --name lab-b --key "ecdsa-..."

`server/deploy/invite.py` calls it, in the `run` container of docker-compose.yml as a rule: nothing outside
that network reaches the Control API. It knows nothing of certificates' folders; the public key comes as text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from federation.errors import FederationError
from server.superlink.control import ControlError, SuperLink, register_supernode, unregister_supernode

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Register or unregister the key; exit code 2 with one line if SuperLink refuses or is not there."""
    parser = argparse.ArgumentParser(description="Let a site in, or shut it out.")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True, help="certificate that SuperLink is verified with")
    parser.add_argument("--name", required=True, help="the site's name")
    parser.add_argument("--key", required=True, help="the site's public key, in OpenSSH form")
    parser.add_argument("--revoke", action="store_true", help="shut it out, for good")
    options = parser.parse_args(arguments)
    try:
        if not options.ca.is_file():
            raise ControlError(f"{options.ca} is missing; run make certs")
        superlink = SuperLink(options.superlink, options.ca)
        if not options.revoke:
            register_supernode(superlink, options.key, options.name)
            print(f"{options.name} may join")
        elif unregister_supernode(superlink, options.key):
            print(f"{options.name} is revoked")
        else:
            print(f"{options.name} was not registered")
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
