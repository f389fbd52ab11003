"""A site's own folder: what makes this machine a member of a federation, and what a run leaves on it."""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.errors import ConfigError, one_line

__all__ = ["SiteFolder", "default_folder"]


@dataclass(frozen=True)
class SiteFolder:
    """The files of one site. The folder is its owner's alone (0700), and so is the key in it (0600)."""

    path: Path

    @property
    def key(self) -> Path:
        """The private key, which is in no message, archive or log."""
        return self.path / "node.key"

    def require_member(self) -> None:
        """Raise a `ConfigError` if there is no key: the folder is no site's, or its owner left."""
        if not self.key.exists():
            raise ConfigError(f"{self.path} holds no site; so100-site key begins one")

    @property
    def invitation(self) -> Path:
        """What the operator sent."""
        return self.path / "invitation.json"

    @property
    def authority(self) -> Path:
        """The certificate of the invitation, by which this site knows SuperLink."""
        return self.path / "ca.crt"

    @property
    def settings(self) -> Path:
        """What the owner chose: the node configuration of the SuperNode."""
        return self.path / "node.toml"

    def read_settings(self) -> dict[str, Any]:
        """Return what the owner chose; nothing if that was never.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return tomllib.loads(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.settings}: cannot be read ({one_line(str(error))}): remove it, and name your "
                "recordings again with so100-site join --data"
            ) from None

    @property
    def recordings(self) -> Path:
        """The list of the owner's recordings, which every round reads."""
        return self.path / "recordings.toml"

    @property
    def rules(self) -> Path:
        """What no run may ask of this site; missing: no rule."""
        return self.path / "rules.toml"

    @property
    def scratch(self) -> Path:
        """Decoded frames, residuals and the count of privacy: treat it as the dataset."""
        return self.path / "scratch"

    @property
    def policy(self) -> Path:
        """The policy of the last run that sent one; it stays when the owner leaves."""
        return self.path / "policy"

    @property
    def personal(self) -> Path:
        """That policy tuned on this site's recordings, and what it was tuned from; it stays as well."""
        return self.path / "personal"

    @property
    def wish(self) -> Path:
        """What the owner wants: to pause or to leave; missing: to take part."""
        return self.path / "wish"

    @property
    def state(self) -> Path:
        """What `so100-site join` is at, for `so100-site status`."""
        return self.path / "state.json"

    @property
    def refusal(self) -> Path:
        """Why SuperLink refused the SuperNode the last time; missing: it did not."""
        return self.path / "refusal"

    @property
    def lock(self) -> Path:
        """Held by the one `so100-site join` of this folder."""
        return self.path / "lock"


def default_folder() -> Path:
    """Return the folder of the one site that a machine has as a rule."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "so100-federation"
