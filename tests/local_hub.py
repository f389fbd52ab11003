"""A small Hub to push to: what `huggingface_hub` asks when it makes repositories, commits and tags."""

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = "hf_" + "a" * 34


class LocalHub(http.server.ThreadingHTTPServer):
    """Its state: repository -> file -> content, (repository, tag) -> commit.

    `failures` are (method, part of the path) -> statuses to answer first; `said` is what it says then.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[str]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.failures: dict[tuple[str, str], list[int]] = {}
        self.said = "as the test wants"
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def _answer(self, method: str) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        hub.asked.append((method, path))
        for (wanted, part), statuses in hub.failures.items():
            if wanted == method and part in path and statuses:
                return self._send(statuses.pop(0), {"error": hub.said})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid token"})
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "lab", "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/validate-yaml":  # of the model card
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wish = json.loads(body)
            name = f"{wish.get('organization') or 'lab'}/{wish['name']}"
            status = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, {})
            return self._send(status, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        if not found or found[1] not in hub.repos:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self._in_repo(method, found[1], found[2] or "", body)

    def _in_repo(self, method: str, repo: str, rest: str, body: bytes) -> None:
        hub = self.server
        if rest.startswith("/preupload"):
            files = json.loads(body)["files"]
            return self._send(
                200,
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                },
            )
        if rest.startswith("/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commits = hub.commits.setdefault(repo, [])
            commits.append(f"{len(commits) + 1:040x}")
            answer = {"commitOid": commits[-1], "commitUrl": f"{hub.url}/{repo}/commit/{commits[-1]}"}
            return self._send(200, {"success": True, **answer})
        if rest.startswith("/tag/"):
            return self._tag(method, repo, rest.removeprefix("/tag/"), body)
        info = {
            "id": repo,
            "sha": hub.commits.get(repo, ["0" * 40])[-1],
            "siblings": [],
            "tags": [],
            "private": True,
        }
        return self._send(200, info)

    def _tag(self, method: str, repo: str, rest: str, body: bytes) -> None:
        """As the real one: a tag that is there does not move."""
        tag = (repo, rest if method == "DELETE" else json.loads(body)["tag"])
        if method == "DELETE":
            return self._send(200 if self.server.tags.pop(tag, None) else 404, {})
        if tag in self.server.tags:
            return self._send(409, {"error": "Tag reference exists already"})
        self.server.tags[tag] = rest
        return self._send(200, {})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A running LocalHub."""
    hub = LocalHub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
