"""so100-site rules: the file is written once, and what is in force is printed."""

import stat

import pytest

from client.cli import main
from client.membership.folder import SiteFolder
from client.rules.owner import TEMPLATE


def test_the_first_call_writes_the_file_and_the_next_ones_print_what_is_in_it(
    site: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rules", "--folder", str(site.path)]
    capsys.readouterr()
    assert main(command) == 0
    assert site.rules.read_text() == TEMPLATE
    assert stat.S_IMODE(site.rules.stat().st_mode) == 0o600
    assert capsys.readouterr().out == f"{site.rules}\nnone\n"
    site.rules.write_text(TEMPLATE.replace("#gigabytes-a-day", "gigabytes-a-day"))
    assert main(command) == 0
    assert capsys.readouterr().out == f"{site.rules}\ngigabytes-a-day = 5\n"
    site.rules.write_text("hours = 1")
    assert main(command) == 2
    assert f"{site.rules}: hours = 1: must be hours" in capsys.readouterr().err
