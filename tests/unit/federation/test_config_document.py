from federation.config import flatten
from federation.config_document import flower_defaults, markdown
from federation.settings import RunConfig
from tests import REPOSITORY


def test_the_page_of_the_configuration_is_current() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert page == markdown(), "run: python -m federation.config_document > docs/configuration.md"


def test_every_setting_has_one_row_with_a_meaning() -> None:
    rows = [line.strip("| ").split(" | ") for line in markdown().splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{key}`" for key in flatten(RunConfig())]
    assert all(len(row) == 5 and row[4] for row in rows)


def test_flower_lists_what_the_generator_prints() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert flower_defaults() in project, "replace the block by: python -m federation.config_document --flower"
