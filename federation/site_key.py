"""A site's name and key: made at the site, sent as one line, read by the operator.

The private half stays in the site's own folder. What goes by mail is the public half in OpenSSH's form, with
the site's name and the key's fingerprint behind it:

    ecdsa-sha2-nistp384 AAAAE2Vj...== lab-b SHA256:0mWTxW...

Mail and terminals break, quote and lengthen lines, so `read_key_line` looks at nothing but the characters
that a key and its fingerprint can have. The fingerprint tells a key that was changed on its way.
"""

import base64
import hashlib
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import CertificateError
from federation.key_files import read

__all__ = [
    "PublicKey",
    "check_site_name",
    "load_elliptic_key",
    "load_site_key",
    "new_key",
    "public_key",
    "read_key_line",
    "site_private_key",
]

_KIND = "ecdsa-sha2-nistp384"
_KEY_CHARACTERS = 184  # base64 of the 136 bytes of a P-384 public key, its padding included
_FINGERPRINT = re.compile(r"SHA256:([A-Za-z0-9+/]{0,43})")
_QUOTES = "\"'`<>|\\"  # what mail programs and shells put around and into a line
_MAX_CHARACTERS = 10_000
_SITE_CHARACTERS = frozenset(string.ascii_lowercase + string.digits + "-")
_SITE_MAX_CHARACTERS = 63
_HOW = "it is the line that so100-site key prints at the site"


@dataclass(frozen=True)
class PublicKey:
    """The public half of a site's key."""

    line: str  # OpenSSH: kind and base64, no comment

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.line.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def spell(self, name: str = "") -> str:
        """Return the line that goes by mail; `name` is the site's, where it has one already."""
        return " ".join(filter(None, (self.line, name, self.fingerprint)))


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key (ECDSA P-384), for whatever purpose."""
    return ec.generate_private_key(ec.SECP384R1())


def site_private_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key in OpenSSH form, which `flower-supernode --auth-supernode-private-key` reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_key(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> PublicKey:
    """Return the public half, which `flwr supernode register` reads."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    line = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return PublicKey(line.decode())


def load_site_key(path: Path, fix: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted OpenSSH key on an elliptic curve; errors as `load_elliptic_key`."""
    return load_elliptic_key(path, fix, serialization.load_ssh_private_key, "an OpenSSH key")


def load_elliptic_key(
    path: Path, fix: str, parse: Callable[[bytes, None], object], form: str
) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted key on an elliptic curve.

    Args:
        parse: reads it from bytes, without a password.
        form: what `parse` expects, for errors.

    Raises:
        CertificateError: names the file and `fix`.
    """
    try:
        key = parse(read(path, fix), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"{path} cannot be read as {form}; {fix}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not a key on an elliptic curve; {fix}")
    return key


def read_key_line(text: str) -> PublicKey:
    """Return the key in what somebody pasted: broken into lines, quoted, or with words around it.

    Raises:
        CertificateError: there is no such key, more than one, a private one, or one that was changed on its
            way. Nothing of `text` is repeated.
    """
    if len(text) > _MAX_CHARACTERS:
        raise CertificateError(f"the key has {len(text)} characters: too many; {_HOW}")
    bare = "".join(c for c in text if "!" <= c <= "~" and c not in _QUOTES)
    if "PRIVATEKEY" in bare:
        raise CertificateError(
            "this is a private key, which must never leave its site: have the site make another with "
            "so100-site key --new, and send the line that it prints"
        )
    parts = bare.split(_KIND)
    if len(parts) != 2:
        found = "no key" if len(parts) < 2 else f"{len(parts) - 1} keys"
        raise CertificateError(f"{found} of the kind {_KIND} in what was given; {_HOW}")
    encoded, rest = parts[1][:_KEY_CHARACTERS], parts[1][_KEY_CHARACTERS:]
    try:
        key = serialization.load_ssh_public_key(f"{_KIND} {encoded}".encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)  # by its kind
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"the key is cut off or was changed on its way; {_HOW}") from None
    found_key = public_key(key)
    sent = _FINGERPRINT.search(rest)
    if sent and f"SHA256:{sent[1]}" != found_key.fingerprint:
        raise CertificateError(
            f"the key does not have the fingerprint that came with it but {found_key.fingerprint}: one of "
            f"them was changed on its way; have it sent again, {_HOW}"
        )
    return found_key


def check_site_name(site: str) -> None:
    """Raise a `CertificateError` unless `site` can be a folder, a DNS label and a node's name at once."""
    good = set(site) <= _SITE_CHARACTERS and site.strip("-") == site
    if not good or not 1 <= len(site) <= _SITE_MAX_CHARACTERS:
        raise CertificateError(
            f"site name {site!r}: use 1 to {_SITE_MAX_CHARACTERS} lowercase letters, digits and hyphens, "
            "no hyphen at either end"
        )
