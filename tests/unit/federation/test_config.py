import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.config import RunConfig, flatten, load_run_config, parse_run_config
from federation.errors import ConfigError
from tests import REPOSITORY

KEYS = sorted(flatten(RunConfig()))


def test_flower_lists_every_setting_with_its_default() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    sections = project["tool"]["flwr"]["app"]["config"]
    listed = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    assert listed == flatten(RunConfig())


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda f: f.stem)
def test_every_run_configuration_in_the_repository_is_valid(file: Path) -> None:
    if file.stem != "certs":
        load_run_config(file)


def test_a_configuration_survives_flattening() -> None:
    config = parse_run_config({"training.local_steps": 7, "policy.size": "tiny"}, "test")
    assert parse_run_config(flatten(config), "test") == config


def test_settings_that_are_left_out_take_their_defaults() -> None:
    assert parse_run_config({}, "test") == RunConfig()


def test_a_whole_number_is_accepted_where_a_fraction_is_expected() -> None:
    mu = parse_run_config({"training.proximal_mu": 0}, "test").training.proximal_mu
    assert isinstance(mu, float)
    assert mu == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.local_step": 3}, "unknown key 'training.local_step': did you mean training.local_steps?"),
        ({"weather": "fine"}, "unknown key 'weather'"),
        ({"training.local_steps": -1}, "training.local_steps = -1: must be at least 1"),
        ({"training.local_steps": 2.5}, "training.local_steps = 2.5: must be of type int"),
        ({"training.local_steps": True}, "training.local_steps = True: must be of type int"),
        ({"training.learning_rate": 0}, "training.learning_rate = 0.0: must be greater than 0"),
        ({"training.learning_rate": float("nan")}, "training.learning_rate = nan: must be a finite number"),
        ({"federation.fraction_fit": 1.5}, "federation.fraction_fit = 1.5: must be at most 1"),
        ({"federation.min_nodes": 2**63}, f"federation.min_nodes = {2**63}: must fit into 64 bits"),
        ({"policy.size": "huge"}, "policy.size = 'huge': must be one of tiny, small, smolvla, pretrained"),
        ({"policy.cameras": "top,top"}, "policy.cameras = 'top,top': must be different names"),
        ({"policy.cameras": ""}, "policy.cameras = ''"),
        ({"policy.normalisation": "none"}, "must be one of federated, pretrained"),
        (
            {"federation.partial_work": True, "aggregation.method": "median"},
            "federation.partial_work = true: does not go with aggregation.method = 'median'; set that back",
        ),
        (
            {"federation.partial_work": True, "privacy.mode": "local"},
            "does not go with privacy.mode = 'local'",
        ),
        (
            {"federation.partial_work": True, "training.local_epochs": 0.5},
            "does not go with training.local_epochs = 0.5",
        ),
        ({"policy.size": "tiny", "policy.normalisation": "pretrained"}, "'tiny' has no statistics"),
        (
            {"policy.pretrained": "outputs/demo-1/pretrained_model"},
            "policy.pretrained = 'outputs/demo-1/pretrained_model': is neither a Hub id",
        ),
        ({"policy.pretrained": "../base"}, "policy.pretrained = '../base': is neither a Hub id"),
        ({"policy.vlm": "./vlm"}, "policy.vlm = './vlm': is neither a Hub id"),
        ({"policy.adaptr": "lora"}, "unknown key 'policy.adaptr': did you mean policy.adapter?"),
        ({"policy.adapter": "dora"}, "policy.adapter = 'dora': must be one of none, lora"),
        (
            {"policy.adapter": "lora", "policy.size": "tiny"},
            "policy.adapter = 'lora': policy.size = 'tiny' has random weights",
        ),
        (
            {"policy.lora_rank": 8},
            "policy.lora_rank = 8: policy.adapter = 'none' trains no adapter; set it to",
        ),
        ({"policy.adapter": "lora", "policy.lora_rank": 0}, "policy.lora_rank = 0: must be at least 1"),
        ({"policy.adapter": "lora", "policy.lora_train": "a"}, "must be one of both, b"),
        (
            {"policy.adapter": "lora", "policy.lora_targets": "(q|v"},
            "policy.lora_targets = '(q|v': is no regular expression (missing )",
        ),
        ({"run.name": "../evil"}, "run.name = '../evil'"),
        ({"run.name": ".."}, "run.name = '..'"),
        (
            {"training.learning_rate": 1e-6},
            "training.min_learning_rate = 2.5e-06: must not exceed training.learning_rate = 1e-06",
        ),
        (
            {"aggregation.strategy": "fedadam"},
            "aggregation.server_learning_rate = 1.0: must be at most 0.1 with aggregation.strategy = 'feda",
        ),
        (
            {"training.adapt_proximal_mu": True, "training.proximal_mu": 0.0},
            "training.adapt_proximal_mu = true: multiplies mu, and training.proximal_mu = 0.0 leaves it at 0",
        ),
        (
            {"training.adapt_proximal_mu": True, "aggregation.strategy": "fedavg"},
            "multiplies mu, and aggregation.strategy = 'fedavg' leaves it at 0",
        ),
        (
            {"aggregation.clip_norm": 1.0, "aggregation.method": "median"},
            "aggregation.clip_norm = 1.0: aggregation.method = 'median' clips nothing; set it to 0",
        ),
        (
            {"evaluation.rollback_ratio": 0.5},
            "evaluation.rollback_ratio = 0.5: would undo rounds that are no worse; must be greater than 1",
        ),
        (
            {"aggregation.clip_norm": 1.0, "privacy.mode": "central"},
            "aggregation.clip_norm = 1.0: privacy.mode = 'central' clips to privacy.clip_norm; set it to 0",
        ),
        (
            {"training.warmup_steps": 600, "training.local_steps": 30, "run.num_rounds": 20},
            "training.warmup_steps = 600: the run has run.num_rounds * training.local_steps = 600 steps only",
        ),
        (
            {"federation.min_updates": 2, "federation.min_nodes": 3, "federation.fraction_fit": 0.3},
            "federation.min_updates = 2: with fraction_fit = 0.3 a round may have 1 participants only",
        ),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_value_and_rule(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config(settings, "demo.toml")
    assert str(caught.value).startswith("demo.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[training\n", "cannot be read as TOML"),
        ("local_steps = 3\n", "local_steps stands outside a section"),
        ("[training]\nlocal_steps = 'x'\n", "must be of type int"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_run_config(tmp_path / "none.toml")


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[run]\nnum_rounds = 3\n")
    assert load_run_config(file, {"run.num_rounds": 9}).run.num_rounds == 9


@given(
    st.dictionaries(
        st.sampled_from(KEYS) | st.text(max_size=12),
        st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=12)
        | st.none()
        | st.lists(st.integers()),
        max_size=4,
    )
)
def test_any_settings_give_a_configuration_or_a_one_line_error(settings: dict) -> None:
    try:
        config = parse_run_config(settings, "fuzz")
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert dataclasses.is_dataclass(config)


LINES = st.sampled_from(
    ["[run]", "[run", "seed = 0", "seed = -1", "x = 'y'", "[[run]]", "run.seed = 1", "=", "\0"]
)


@given(st.binary(max_size=60) | st.lists(LINES, max_size=5).map(lambda lines: "\n".join(lines).encode()))
@example(b"a = " + b"[" * 100_000)
def test_whatever_is_in_a_file_it_is_a_configuration_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(content)
    try:
        assert dataclasses.is_dataclass(load_run_config(file))
    except ConfigError as error:
        assert str(file) in str(error)
