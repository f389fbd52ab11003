"""Registers or revokes one site's key, where SuperLink's Control API can be reached.

`server/deploy/invite.py` calls it, as a rule as `so100-server register` in the `run` container of
docker-compose.yml: nothing outside that network reaches the Control API. It knows nothing of
certificates' folders; the public key comes as text.
"""

from server.superlink.control import ControlError, SuperLink, register_supernode, unregister_supernode

__all__ = ["change_registration"]


def change_registration(superlink: SuperLink, name: str, key: str, *, revoke: bool = False) -> str:
    """Register the public `key` of the site `name`, or revoke it for good; return what became of it.

    Args:
        key: in OpenSSH form.

    Raises:
        ControlError: SuperLink's certificate or secret is missing, or SuperLink refuses or cannot be reached.
    """
    for file in (superlink.ca_certificate, superlink.secret):
        if not file.is_file():
            raise ControlError(f"{file} is missing; run make certs")
    if not revoke:
        register_supernode(superlink, key, name)
        return f"{name} may join"
    if unregister_supernode(superlink, key):
        return f"{name} is revoked"
    return f"{name} was not registered"
