"""A unit for `systemd --user`: the site joins when its owner's session begins, or at boot with lingering."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from client.membership.folder import SiteFolder
from client.membership.supernode import PROGRAMS
from federation.errors import FederationError, one_line
from federation.files import write_atomically

__all__ = ["unit_file", "unit_text", "write_unit"]

_SECONDS = 20.0
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
# Of this shell's environment, what the doctor has gone by just now. No token: `hf auth login` keeps that.
_KEPT = (
    *_PROXIES,
    *map(str.lower, _PROXIES),
    *("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_LEROBOT_HOME", "XDG_CACHE_HOME"),
    *("FEDERATION_WARM_START", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
)


def write_unit(site: SiteFolder, name: str) -> None:
    """Write the unit of the site `name` and print how it is started.

    Raises:
        FederationError: systemd finds fault with it, or there is none; nothing is written then.
        OSError: it cannot be written.
    """
    if not sys.platform.startswith("linux"):
        raise FederationError(
            f"--systemd: there is none on {sys.platform}; so100-site join alone stays running"
        )
    file = unit_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)

    def write(staging: Path) -> None:
        staging.touch(mode=0o600)  # a proxy's address may hold a password
        staging.write_text(unit_text(site, name), encoding="utf-8")
        _verify(staging)

    write_atomically(file, write)
    print(f"wrote {file}; start it, now and with each session, with:")
    print(f"  systemctl --user daemon-reload && systemctl --user enable --now {file.stem}")
    print("A user's units end with the last session. So that this one runs without one, and from boot on:")
    print("  loginctl enable-linger")
    print(f"Its log: journalctl --user --unit {file.stem} --follow")


def unit_file(name: str) -> Path:
    """Return where the unit of the site `name` lies."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "systemd" / "user" / f"so100-{name}.service"


def unit_text(site: SiteFolder, name: str) -> str:
    """Return the unit, with interpreter, PATH and what else counts written out: it inherits no shell's."""
    command = [sys.executable, str(PROGRAMS / "so100-site"), "join", "--unchecked"]
    command += ["--folder", str(site.path)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    lines = [f"Environment={_quote(f'{name}={value}')}" for name, value in (kept | {"PATH": path}).items()]
    environment = "\n".join(lines)
    return f"""[Unit]
Description=SO-100 Federation: site {name}

[Service]
ExecStart={" ".join(_quote(word).replace("$", "$$") for word in command)}
{environment}
Restart=on-failure
RestartSec=30
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def _quote(word: str) -> str:
    """Return one word of a line of systemd's, whatever is in it."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _verify(file: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        return
    try:
        result = subprocess.run(
            [program, "verify", "--user", str(file)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if result.returncode != 0 and file.name in result.stderr:
        raise FederationError(f"systemd refuses the unit: {one_line(result.stderr)}")
