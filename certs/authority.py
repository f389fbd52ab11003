"""Making certificates, in memory: nothing here writes a file."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.addresses import canonical_host
from federation.errors import CertificateError
from federation.key_files import read
from federation.site_key import load_elliptic_key

__all__ = [
    "CertificateError",
    "canonical_host",
    "issue_ca",
    "issue_server",
    "load_certificate",
    "load_key",
    "private_pem",
    "server_names",
]

_ORGANISATION = "SO-100 Federation"


def issue_ca(key: ec.EllipticCurvePrivateKey, days: int, now: datetime) -> bytes:
    """Return the self-signed certificate (PEM) of a certificate authority whose key is `key`."""
    name = _name("certificate authority")
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def issue_server(
    key: ec.EllipticCurvePublicKey,
    ca_key: Path,
    ca_certificate: Path,
    names: Sequence[str],
    days: int,
    now: datetime,
) -> bytes:
    """Return a server certificate (PEM) for `key`, valid for `names`, signed by the CA and not outliving it.

    Args:
        names: canonical DNS names and IP addresses, at least one.

    Raises:
        CertificateError: the CA's files are missing, unreadable, not a pair, or expired.
    """
    issuer = load_certificate(ca_certificate)
    authority = load_key(ca_key, fix="bring it back from where it is kept; only it can sign a certificate")
    if authority.public_key() != issuer.public_key():
        raise CertificateError(f"{ca_key} is not the key of {ca_certificate}; bring the right one back")
    if now >= issuer.not_valid_after_utc:
        raise CertificateError(
            f"{ca_certificate} expired on {issuer.not_valid_after_utc:%Y-%m-%d}; "
            f"move {ca_key.parent} and {ca_certificate.parent} away and run make certs"
        )
    end = min(now + timedelta(days=days), issuer.not_valid_after_utc)
    issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    certificate = (
        _builder(_name(names[0]), issuer.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer_identifier, critical=False)
        .sign(authority, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PKCS 8 PEM, which SuperLink reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_certificate(path: Path, fix: str = "remove it and run make certs") -> x509.Certificate:
    """Read a PEM certificate; a `CertificateError` names the file if it is missing or damaged."""
    try:
        return x509.load_pem_x509_certificate(read(path, "run make certs"))
    except ValueError:
        raise CertificateError(f"{path} cannot be read as a certificate; {fix}") from None


def load_key(path: Path, fix: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted PEM key on an elliptic curve; errors as `load_certificate`."""
    return load_elliptic_key(path, fix, serialization.load_pem_private_key, "a private key")


def server_names(certificate: Path) -> list[str]:
    """Return the DNS names and IP addresses a certificate is valid for; raises as `load_certificate` does."""
    try:
        names = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in names.value]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=5))  # clocks of sites lag a little
        .not_valid_after(end)
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
