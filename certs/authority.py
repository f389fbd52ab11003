"""Making keys and certificates, in memory: nothing here writes a file."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import FederationError

__all__ = [
    "CertificateError",
    "issue_ca",
    "issue_server",
    "load_certificate",
    "load_key",
    "new_site_key",
    "server_names",
]

_ORGANISATION = "SO-100 Federation"


class CertificateError(FederationError):
    """A certificate or key is missing, malformed or cannot be used. The message is one line with the fix."""


def issue_ca(days: int, now: datetime) -> tuple[bytes, bytes]:
    """A new certificate authority: its private key (PKCS 8 PEM) and its self-signed certificate (PEM)."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("certificate authority")
    certificate = (
        _builder(name, name, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def issue_server(
    ca_key: Path, ca_certificate: Path, names: Sequence[str], days: int, now: datetime
) -> tuple[bytes, bytes]:
    """A new server key (PKCS 8 PEM) and its certificate (PEM), valid for `names`, signed by the CA.

    Args:
        names: DNS names and IP addresses.

    Raises:
        CertificateError: the CA cannot be read, or a name is neither a DNS name nor an address.
    """
    authority, issuer = load_key(ca_key), load_certificate(ca_certificate)
    key = ec.generate_private_key(ec.SECP384R1())
    issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    certificate = (
        _builder(_name(names[0]), issuer.subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_identifier, critical=False)
        .sign(authority, hashes.SHA384())
    )
    return _private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def new_site_key(site: str) -> tuple[bytes, bytes]:
    """A SuperNode's key pair (ECDSA P-384): private and public half in OpenSSH form, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + f" {site}\n".encode()


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate; a `CertificateError` names the file if it is missing or damaged."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"{path} is missing; run make certs") from None
    except (ValueError, OSError) as error:
        raise CertificateError(f"{path} cannot be read as a certificate ({error})") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted PEM key on an elliptic curve; errors as `load_certificate`."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise CertificateError(f"{path} is missing; run make certs") from None
    except (ValueError, TypeError, OSError):
        raise CertificateError(f"{path} cannot be read as a private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not a key on an elliptic curve")
    return key


def server_names(certificate: Path) -> list[str]:
    """The DNS names and IP addresses a certificate is valid for."""
    extension = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of sites lag a little
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or any(c.isspace() or c in "/:@" for c in name):
        raise CertificateError(f"host {name!r}: must be a DNS name or an IP address, without scheme or port")
    return x509.DNSName(name)


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    uses = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{use: allowed.get(use, False) for use in uses})


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
