"""The pretrained policy by its Hub id, with the real `huggingface_hub` client against a small local Hub."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.policy.build import frozen_fingerprint
from federation.policy.vlm_folder import vlm_folder
from tests import REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
POLICY_ID, VLM_ID = "lerobot/smolvla_base", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
BUILD = """
import torch
from pathlib import Path
from federation.settings import PolicyConfig
from federation.errors import FederationError
from federation.policy.build import build_policy, frozen_fingerprint
try:
    policy = build_policy(PolicyConfig(), seed=0, device=torch.device("cpu"), cache=Path("unused"))
    print("fingerprint", frozen_fingerprint(policy))
except FederationError as error:
    print("error:", error)
"""
DOWNLOAD = """
import sys
from pathlib import Path
from client.recordings.opened import open_recordings
from client.recordings.sources import Source
recordings, faults = open_recordings([Source(sys.argv[1])], Path(sys.argv[2]))
print(*(recording.root for recording in recordings), *faults)
"""


class LocalHub(http.server.BaseHTTPRequestHandler):
    """Answers what `hf_hub_download` asks: file metadata by HEAD, content by GET, the model's file list."""

    folders: dict[str, Path]
    recordings: dict[str, Path]  # of the Hub's other kind of repository; each has one revision, v1

    def do_HEAD(self) -> None:
        self._answer(send_content=False)

    def do_GET(self) -> None:
        self._answer(send_content=True)

    def _answer(self, *, send_content: bool) -> None:
        path = self.path.split("?")[0]
        for repo, folder in self.folders.items():
            if path.startswith(f"/{repo}/resolve/main/"):
                file = folder / path.removeprefix(f"/{repo}/resolve/main/")
                if file.is_file():
                    return self._send(file.read_bytes(), send_content)
            if path == f"/api/models/{repo}/tree/main":
                files = [{"type": "file", "path": f.name, "size": 1, "oid": "0"} for f in folder.iterdir()]
                return self._send(json.dumps(files).encode(), send_content)
            if path == f"/api/models/{repo}" or path == f"/api/models/{repo}/revision/main":
                siblings = [{"rfilename": file.name} for file in folder.iterdir()]
                body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
                return self._send(body.encode(), send_content)
        for repo, folder in self.recordings.items():
            content = {
                file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
            }
            start = f"/datasets/{repo}/resolve/{COMMIT}/"
            if (name := path.removeprefix(start)) != path and name in content:
                return self._send(content[name].read_bytes(), send_content)
            if path == f"/api/datasets/{repo}/tree/{COMMIT}":
                sizes = {name: file.stat().st_size for name, file in content.items()}
                files = [{"type": "file", "path": name, "size": n, "oid": "0"} for name, n in sizes.items()]
                return self._send(json.dumps(files).encode(), send_content)
            if path in (f"/api/datasets/{repo}/revision/{known}" for known in ("v1", COMMIT)):
                body = json.dumps({"id": repo, "sha": COMMIT, "siblings": [], "tags": []})
                return self._send(body.encode(), send_content)
        self.send_response(404)
        known = any(repo in path for repo in self.folders)
        self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, body: bytes, send_content: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_content:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(policy, cache: Path, tmp_path: Path) -> Iterator[str]:
    """A Hub that holds the tiny policy as lerobot/smolvla_base; its config names the VLM by its Hub id."""
    base = tmp_path / "base"
    policy.save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"vlm_model_name": VLM_ID}
    (base / "config.json").write_text(json.dumps(config))
    LocalHub.folders = {
        POLICY_ID: base,
        VLM_ID: Path(shutil.copytree(vlm_folder("tiny", cache), tmp_path / "v")),
    }
    LocalHub.recordings = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LocalHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _build(hub: str, home: Path, *, offline: bool = False) -> str:
    return _run(BUILD, hub, home, offline=offline)


def _run(code: str, hub: str, home: Path, *arguments: str, offline: bool = False) -> str:
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_default_policy_is_downloaded_once_and_then_read_from_the_cache(
    hub: str, policy, tmp_path: Path
) -> None:
    assert f"fingerprint {frozen_fingerprint(policy)}" in _build(hub, tmp_path / "home")
    assert f"fingerprint {frozen_fingerprint(policy)}" in _build(hub, tmp_path / "home", offline=True)


def test_a_policy_that_the_hub_does_not_have_is_one_clear_line(hub: str, tmp_path: Path) -> None:
    LocalHub.folders = {}
    printed = _build(hub, tmp_path / "home").strip().splitlines()
    assert printed[-1].startswith(
        "error: policy.pretrained = 'lerobot/smolvla_base': no policy configuration"
    )


def test_a_recording_is_downloaded_once_at_its_revision_and_its_name_is_in_no_path(
    hub: str, data: Path, tmp_path: Path
) -> None:
    LocalHub.recordings = {"ann/pick-cube": data / "site-a"}
    scratch, name = tmp_path / "scratch", "hf:ann/pick-cube@v1"
    first = _run(DOWNLOAD, hub, tmp_path / "home", name, str(scratch)).splitlines()[-1]
    original = {file.relative_to(data / "site-a") for file in (data / "site-a").rglob("*") if file.is_file()}
    assert len(original) >= 6
    for file in original:
        assert (Path(first) / file).read_bytes() == (data / "site-a" / file).read_bytes()
    assert Path(first).parent == scratch / "hub"
    assert "ann" not in first.removeprefix(str(scratch))
    assert "pick" not in first.removeprefix(str(scratch))
    again = _run(DOWNLOAD, hub, tmp_path / "home", name, str(scratch), offline=True)
    assert again.splitlines()[-1] == first
    other = _run(DOWNLOAD, hub, tmp_path / "home", "hf:ann/pick-cube@v2", str(scratch)).splitlines()[-1]
    assert other.startswith("dataset hf:ann/pick-cube@v2: cannot be downloaded (")
    assert "check its name, its revision" in other
