"""What `make certs` is asked for: the configuration file, its defaults and its limits."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certs.authority import CertificateError, canonical_host
from federation.site_key import check_site_name

__all__ = ["CA_DAYS", "SERVER_DAYS", "load_settings"]

SERVER_DAYS = 397
CA_DAYS = 3650
MAX_DAYS = 36500
_DEFAULTS: dict[str, Any] = {
    "hosts": [],
    "sites": ["site-a", "site-b"],
    "server_days": SERVER_DAYS,
    "ca_days": CA_DAYS,
}


def load_settings(path: Path) -> dict[str, Any]:
    """Read a configuration such as configs/certs.toml; its keys are the arguments of `issue_all`.

    Raises:
        CertificateError: the file cannot be read, or a key or value is not allowed.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CertificateError(
            f"{path}: cannot be read ({error.strerror}); run from the repository's root or give --config"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CertificateError(f"{path}: cannot be read as TOML ({error})") from None
    for key, value in settings.items():
        if key not in _DEFAULTS:
            raise CertificateError(f"{path}: unknown key {key!r}: must be one of {', '.join(_DEFAULTS)}")
        if isinstance(_DEFAULTS[key], list):
            _check_names(
                f"{path}: {key} = {value!r}", value, canonical_host if key == "hosts" else check_site_name
            )
        elif type(value) is not int or not 1 <= value <= MAX_DAYS:
            raise CertificateError(
                f"{path}: {key} = {value!r}: must be a number of days from 1 to {MAX_DAYS}"
            )
    return _DEFAULTS | settings


def _check_names(what: str, value: Any, check_one: Callable[[str], object]) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CertificateError(f"{what}: must be a list of names")
    for name in value:
        try:
            check_one(name)
        except CertificateError as error:
            raise CertificateError(f"{what}: {error}") from None
