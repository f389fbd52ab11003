"""The documents: short where they must be, and no link that leads nowhere."""

import re
import subprocess

import pytest
from typer.main import get_command

from client import cli as site
from server import cli as server
from tests import REPOSITORY

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGETS = re.compile(r"^([a-z][a-z -]*):", re.MULTILINE)
_COMMAND = re.compile(r"\bmake ([a-z][a-z-]*)\b")


def _documents() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if not name.startswith("docker/site/")]


def _anchors(text: str) -> set[str]:
    """As code hosts make them of headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", _documents())
def test_every_link_leads_somewhere(name: str) -> None:
    document = REPOSITORY / name
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    "name", [name for name in _documents() if "/" not in name or name.startswith("docs/")]
)
def test_every_target_of_make_that_is_named_is_there(name: str) -> None:
    rules = _TARGETS.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    targets = {target for rule in rules for target in rule.split()}
    code = re.findall(
        r"`([^`]+)`|^```$(.*?)^```$", (REPOSITORY / name).read_text(encoding="utf-8"), re.M | re.S
    )
    named = {target for part in code for text in part for target in _COMMAND.findall(text)}
    assert named <= targets


@pytest.mark.parametrize("name", _documents())
def test_every_command_that_is_named_is_there(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for program, app in (("so100-server", server.app), ("so100-site", site.app)):
        named = set(re.findall(rf"\b{program} ([a-z][a-z-]*)", "\n".join(re.findall(r"`+[^`]+`+", text))))
        assert named <= set(get_command(app).commands)


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
