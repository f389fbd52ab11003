"""Pushes exported policies to the Hugging Face Hub.

What is wrong with token or repository is said before round 1. Later, nothing here fails the run: a push is
tried again while the Hub is busy or away, and given up with a line in the log.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from federation.errors import ConfigError, one_line
from federation.logs import get_logger
from federation.policy.folder import name_vlm
from federation.settings import HubConfig

__all__ = ["Hub"]

_SECONDS_BEFORE_RETRIES = (2.0, 10.0, 30.0, 60.0)
_log = get_logger("server.output.hub")


class Hub:
    """The repository `config.repo`, and `<repo>-vlm` beside it if the policy brings its own VLM.

    Each round is tagged `RUN-round-N`; one that is done again takes its tag over. Uploads happen in a thread
    of their own, one after another.

    Raises:
        ConfigError: no token, a token that the Hub refuses or that may not write there, or no Hub.
    """

    def __init__(self, config: HubConfig, run: str) -> None:
        """Check token and repository, which is made if it is missing."""
        self._config, self._run, self._api = config, run, HfApi()
        self._reports: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hub")
        self._newest: tuple[Future[None], Path, int] | None = None
        where = f"hub.repo = {config.repo!r}"
        if get_token() is None:
            raise ConfigError(f"{where}: there is no token: set HF_TOKEN on the server, or empty hub.repo")
        try:
            _with_retries(self._api.whoami)
            _with_retries(lambda: self._make(config.repo))
            _with_retries(lambda: self._api.auth_check(config.repo, write=True))
        except OfflineModeIsEnabled:
            raise ConfigError(f"{where}: HF_HUB_OFFLINE is set on the server; unset it") from None
        except HfHubHTTPError as error:
            raise ConfigError(f"{where}: {_explain(error)}") from None
        except (httpx.HTTPError, OSError) as error:
            raise ConfigError(f"{where}: the Hub cannot be reached ({error}); empty hub.repo") from None

    def due(self, round_: int) -> bool:
        """Return whether to push after `round_`, which is not the last."""
        return bool(self._config.push_frequency) and round_ % self._config.push_frequency == 0

    def push(self, folder: Path, round_: int, *, remove: bool = False) -> None:
        """Queue `folder`, a policy folder after `round_`, which must not change until `close`.

        Args:
            remove: the folder, afterwards.
        """
        self._newest = self._pool.submit(self._push, folder, round_, remove), folder, round_

    def drop_waiting(self) -> None:
        """Give up the newest push if it has not begun: a newer one follows, and each holds a whole export."""
        if self._newest is not None and self._newest[0].cancel():
            (_, folder, round_), self._newest = self._newest, None
            _log.warning("round %d does not go to the Hub: a push still runs, a newer round is next", round_)
            shutil.rmtree(folder, ignore_errors=True)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Return the events of the pushes that ended since the last call: `pushed` or `push_failed`."""
        while not self._reports.empty():
            yield self._reports.get()

    def close(self) -> None:
        """Wait for the pushes."""
        self._pool.shutdown()

    def _push(self, folder: Path, round_: int, remove: bool) -> None:
        try:
            _with_retries(lambda: self._upload(folder, round_))
        except Exception as error:  # whatever it is, the run goes on: the folder is on disk
            reason = _explain(error) if isinstance(error, HfHubHTTPError) else one_line(error)
            _log.error("round %d is not on the Hub: %s", round_, reason)
            self._reports.put({"event": "push_failed", "round": round_, "reason": reason})
        else:
            _log.info("round %d is on the Hub: %s", round_, self._config.repo)
            self._reports.put({"event": "pushed", "round": round_, "repo": self._config.repo})
        finally:
            if remove:
                shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, folder: Path, round_: int) -> None:
        repo, message = self._config.repo, f"After round {round_}"
        with tempfile.TemporaryDirectory() as empty:
            if (folder / "vlm").is_dir():
                self._make(f"{repo}-vlm")
                self._api.upload_folder(
                    repo_id=f"{repo}-vlm", folder_path=folder / "vlm", commit_message=message
                )
                named = Path(empty) / "policy"
                shutil.copytree(folder, named, ignore=shutil.ignore_patterns("vlm"))
                name_vlm(named, f"{repo}-vlm")
                folder = named
            commit = self._api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        self._tag(repo, f"{self._run}-round-{round_}", commit.oid)

    def _tag(self, repo: str, tag: str, commit: str) -> None:
        """Let `tag` name `commit`. A tag that is there does not move: the Hub answers 409 and keeps it."""
        try:
            self._api.create_tag(repo, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            self._api.delete_tag(repo, tag=tag)
            self._api.create_tag(repo, tag=tag, revision=commit)

    def _make(self, repo: str) -> None:
        self._api.create_repo(repo, private=self._config.private, exist_ok=True)


def _with_retries(action: Callable[[], Any]) -> Any:
    """Return `action()`; retry it after a while where the Hub is busy (429), broken (5xx) or away."""
    for seconds in _SECONDS_BEFORE_RETRIES:
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response.status_code != 429 and error.response.status_code < 500:
                raise
            reason = _explain(error)
        except httpx.TransportError as error:
            reason = str(error)
        _log.warning("the Hub: %s; again in %.0f s", reason, seconds)
        time.sleep(seconds)
    return action()


def _explain(error: HfHubHTTPError) -> str:
    """Return what is wrong, in the Hub's own words, and what to do about it where the status shows that."""
    status = error.response.status_code
    meaning = {
        401: "the Hub does not know the token (401): make a new one with write access",
        # Also for a full storage, or a licence that nobody has accepted.
        403: "the Hub forbids it (403): if it means the token, that needs write access to this owner's "
        "repositories",
        404: "the Hub has no such owner, or hides it from this token (404)",
        429: "the Hub allows no more requests for now (429)",
    }.get(status, f"the Hub answered {status}")
    said = one_line(error.server_message or "")
    return f"{meaning}; it says: {said}" if said else meaning
