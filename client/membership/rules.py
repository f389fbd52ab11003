"""`so100-site rules`: what this site's owner insists on."""

from client.membership.folder import SiteFolder
from client.rules.owner import TEMPLATE, read_rules
from federation.key_files import locked, replace

__all__ = ["print_rules"]


def print_rules(site: SiteFolder) -> None:
    """Print the owner's rules; where there is no file yet, write one that says how they are written.

    Raises:
        ConfigError: the file cannot be read, or a rule in it is at fault.
    """
    if not site.rules.exists():
        with locked(site.path):
            replace(site.rules, TEMPLATE.encode(), private=True)
    print(f"{site.rules}\n{read_rules(site.rules).spell()}")
