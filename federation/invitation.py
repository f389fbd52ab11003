"""An invitation: what a site needs to know before it joins, in one file without any secret.

`so100-server invite` writes it, `so100-site join` reads it as a stranger's. It holds the certificate of the
federation's authority, by which the site knows SuperLink. Whoever replaced it on its way would have the site
speak to another server, so both sides print the certificate's fingerprint as digits that people compare by
voice.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from federation.addresses import parse_address
from federation.errors import CertificateError, ConfigError, one_line
from federation.settings import PolicyConfig
from federation.site_key import check_site_name

__all__ = ["Expectations", "Invitation", "read_invitation", "spell_authority"]

_MAX_BYTES = 64 * 1024
_GROUPS, _DIGITS = 6, 5  # a hundred bits: nobody finds another certificate with the same digits
_AGAIN = "ask the operator to send it again"


def _check_printable(text: str) -> str:
    """Refuse what moves a terminal's cursor: digits of the authority stand beside this text."""
    if not text.isprintable():
        raise PydanticCustomError("unprintable", "must be printable")
    return text


_Text = Annotated[str, Field(max_length=200), AfterValidator(_check_printable)]
_Bytes = Annotated[int, Field(ge=0, lt=2**63)]


class Expectations(BaseModel):
    """What the operator's run expects of a site, and what a round of it costs."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    cameras: _Text
    empty_cameras: Annotated[int, Field(ge=0, le=100)]  # how many of them a site may lack
    joint_units: Literal["degrees", "range"]
    fps: Annotated[int, Field(ge=1, le=1000)]
    policy: _Text  # its size, or the Hub id of a pretrained one
    app: _Text | None = None  # digest of the operator's release (versions.py); None of an older one
    download_bytes: _Bytes | None = None  # of one round; None: the policy could not be had there
    upload_bytes: _Bytes | None = None
    gpu_bytes: _Bytes | None = None  # an estimate; None of the small policies

    @property
    def round_bytes(self) -> int | None:
        """Return what a site receives and sends in a round; None if that is not known."""
        if self.download_bytes is None or self.upload_bytes is None:
            return None
        return self.download_bytes + self.upload_bytes

    def as_policy(self) -> PolicyConfig:
        """Return the settings by which a dataset is judged: those of no policy that would be downloaded."""
        return PolicyConfig(
            size="smolvla",
            cameras=self.cameras,
            empty_cameras=self.empty_cameras,
            joint_units=self.joint_units,
            fps=self.fps,
        )

    def spell(self) -> str:
        """Return one line for people."""
        lacking = f", {self.empty_cameras} of them may be missing" if self.empty_cameras else ""
        units = "degrees" if self.joint_units == "degrees" else "hundredths of each joint's range"
        line = (
            f"cameras {self.cameras}{lacking}; joints in {units}; {self.fps} frames/s; policy {self.policy}"
        )
        if self.download_bytes is None or self.upload_bytes is None:
            return f"{line}; what a round sends is not known here"
        down, up = (size / 1e6 for size in (self.download_bytes, self.upload_bytes))
        return f"{line}; a round sends {down:.1f} MB to a site and {up:.1f} MB back"


class Invitation(BaseModel):
    """Everything a site is told by its operator."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    so100_invitation: Literal[1]
    site: _Text
    superlink: _Text  # "host:port"
    key: _Text  # fingerprint of the site's public key
    authority: Annotated[str, Field(max_length=20_000)]  # certificate, PEM
    expects: Expectations

    def write(self) -> bytes:
        """Return the file's content, the same whenever it is made of the same."""
        return (json.dumps(self.model_dump(), indent=2) + "\n").encode()


def read_invitation(file: Path) -> Invitation:
    """Read an invitation as a stranger's.

    Raises:
        ConfigError: it cannot be read, or is none; the line names the file and what is wrong.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"invitation {file}: cannot be read ({error.strerror}); {_AGAIN}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"invitation {file}: larger than {_MAX_BYTES} bytes; {_AGAIN}")
    try:
        # Strict JSON: what `json` takes besides, as NaN, pydantic refuses.
        invitation = Invitation.model_validate_json(content)
        check_site_name(invitation.site)
        parse_address(invitation.superlink)
        # Nothing but the certificate whose digits people compare: OpenSSL trusts kinds of blocks beside it
        # that are passed over here.
        only = _read_authority(invitation.authority).public_bytes(Encoding.PEM).decode()
        _check_cameras(invitation.expects)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"invitation {file}: {what}: {one_line(first['msg'])}; {_AGAIN}") from None
    except (CertificateError, ConfigError) as error:
        raise ConfigError(f"invitation {file}: {one_line(str(error))}; {_AGAIN}") from None
    return invitation.model_copy(update={"authority": only})


def spell_authority(pem: str) -> str:
    """Return the digits by which people compare an authority's certificate.

    Raises:
        CertificateError: `pem` is not the certificate of an authority.
    """
    content = _read_authority(pem).public_bytes(Encoding.DER)
    digest = int.from_bytes(hashlib.sha256(content).digest())
    digits = f"{digest % 10 ** (_GROUPS * _DIGITS):0{_GROUPS * _DIGITS}d}"
    return " ".join(digits[i : i + _DIGITS] for i in range(0, len(digits), _DIGITS))


def _read_authority(pem: str) -> x509.Certificate:
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except Exception:  # a stranger's: cryptography raises half a dozen types
        is_authority = False
    if not is_authority:
        raise CertificateError("authority: must be one certificate of an authority, as PEM")
    return certificate


def _check_cameras(expects: Expectations) -> None:
    names = expects.as_policy().camera_names
    if not all(name.isidentifier() for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"cameras {expects.cameras!r}: must be different names, separated by commas")
