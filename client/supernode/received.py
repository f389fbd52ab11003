"""Counts what a SuperNode receives, for `gigabytes-a-day`, and checks a bundle before Flower reads it.

It counts here, where things are pulled: a message that no ClientApp takes, or an app that the site refuses,
costs the owner's line as much as any other. Flower's SuperNode reads the configuration in an app's bundle
before a ClientApp is started and gives its consent: one that cannot be read ended the SuperNode, and a few
hundred bytes may unpack to more than the machine's memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.rules.owner import read_rules, rules_file
from client.rules.traffic import check_traffic, count_traffic
from client.supernode.consent import read_bundle
from federation.errors import FederationError
from federation.logs import get_logger

__all__ = ["check_bundles", "count_received"]

_log = get_logger("client.supernode.received")


def count_received(flower: Any) -> None:
    """Have each message's bytes counted, those of its objects and of a new run's bundle.

    Args:
        flower: the module `flwr.supernode.start_client_internal`.
    """
    pull = flower._pull_and_store_message

    def pull_and_count(
        *,
        node_config: dict[str, Any],
        get_fab: Callable[..., Any],
        pull_object: Callable[..., bytes],
        **others: Any,
    ) -> int | None:
        received: list[int] = []  # bytes; not a sum, for Flower pulls objects in several threads

        def get_fab_and_count(*arguments: Any) -> Any:
            bundle = get_fab(*arguments)
            received.append(len(bundle.content))
            return bundle

        def pull_object_and_count(*arguments: Any) -> bytes:
            content = pull_object(*arguments)
            received.append(len(content))
            return content

        try:
            run_id: int | None = pull(
                node_config=node_config,
                get_fab=get_fab_and_count,
                pull_object=pull_object_and_count,
                **others,
            )
        finally:
            if received:
                _count(Path(str(node_config.get("scratch", ""))), sum(received))
        return run_id

    flower._pull_and_store_message = pull_and_count


def check_bundles(flower: Any) -> None:
    """Have no configuration read from a bundle that the site would refuse to look into.

    Its ClientApp refuses it next, and the server hears why.

    Args:
        flower: the module `flwr.supernode.start_client_internal`.
    """
    read = flower.get_fused_config_from_fab

    def check_and_read(content: bytes, run: Any) -> Any:
        try:
            read_bundle(content)
            return read(content, run)
        except Exception as error:
            _log.warning("the app that the server sends has no configuration that can be read: %s", error)
            return {}

    flower.get_fused_config_from_fab = check_and_read


def _count(scratch: Path, received: int) -> None:
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        rules = read_rules(rules_file())
        count_traffic(rules, scratch, received=received)
        check_traffic(rules, scratch)
    except (FederationError, OSError) as error:  # the ClientApp says it to the server, if one is started
        _log.error("%s", error)
