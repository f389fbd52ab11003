import json
from pathlib import Path

import numpy as np
import pytest
import torch

from federation.config import RunConfig, flatten, parse_run_config
from federation.errors import ConfigError, FederationError
from federation.privacy import add_noise, clip
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.settings import AggregationConfig, PrivacyConfig, RunSection
from federation.wire.payload import Header, open_payload, pack_tensors
from server.aggregation.collector import make_aggregator
from server.run.accountant import count_requests, format_max_epsilon, privacy_spent
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from tests import REPOSITORY

SIZE = 20_000
SHAPES = {"w": torch.Size([SIZE])}


def _aggregate(config: PrivacyConfig, *values: float) -> torch.Tensor:
    aggregator = make_aggregator(AggregationConfig(), config, SHAPES)
    for weight, value in enumerate(values, start=1):
        record, header, sealed = pack_tensors(
            [("w", torch.full((SIZE,), value))], Header("fp32", "run", 1, "")
        )
        aggregator.add(open_payload(record, header, SHAPES, sealed), 100**weight)
    ((_, mean),) = aggregator.aggregate()
    return mean


def test_the_noise_is_as_large_as_configured_and_the_mean_unweighted() -> None:
    config = PrivacyConfig(mode="central", clip_norm=1e6, noise_multiplier=2e-6)
    mean = _aggregate(config, 1.0, 2.0, 6.0, -1.0)
    assert float(mean.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(mean.std()) == pytest.approx(1e6 * 2e-6 / 4, rel=0.05)


def test_no_site_moves_the_sum_by_more_than_the_norm() -> None:
    config = PrivacyConfig(mode="central", clip_norm=3.0, noise_multiplier=1e-12)
    assert float(_aggregate(config, 1000.0).norm()) == pytest.approx(3.0, rel=1e-4)


def test_noise_is_never_the_same_twice() -> None:
    torch.manual_seed(0)
    first = add_noise(torch.zeros(100), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, add_noise(torch.zeros(100), 1.0))


def test_the_seed_of_the_noise_is_too_long_to_be_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.random.Generator] = []
    real = np.random.default_rng

    def watched(*seed: int) -> np.random.Generator:
        made.append(real(*seed))
        return made[-1]

    monkeypatch.setattr(np.random, "default_rng", watched)
    noise = add_noise(torch.zeros(SIZE), 2.0)
    (generator,) = made
    assert generator.bit_generator.seed_seq.entropy.bit_length() > 64  # type: ignore[attr-defined]
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)
    assert add_noise(torch.zeros(()), 1.0).shape == ()


def test_clipping_is_over_all_tensors_together() -> None:
    update = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    clip(update, 1.0)
    assert [float(tensor) for tensor in update] == pytest.approx([0.6, 0.8])
    clip(update, 2.0)
    assert [float(tensor) for tensor in update] == pytest.approx([0.6, 0.8])


def _private(mode: str = "local", noise: float = 2.0, *, resume: bool = False) -> RunConfig:
    privacy = PrivacyConfig(mode=mode, noise_multiplier=noise)
    return RunConfig(run=RunSection(name="run", resume=resume), privacy=privacy)


def _spent(record: RunRecord, config: RunConfig) -> dict[str, float | None]:
    spent = privacy_spent(flatten(config), record.folder)
    assert spent is not None
    json.dumps(spent, allow_nan=False)
    return spent["epsilon"]


def test_every_request_that_is_sent_counts_also_those_of_a_round_done_again(tmp_path: Path) -> None:
    config = _private()
    record = RunRecord(tmp_path, "run", config)
    assert _spent(record, config) == {}
    for round_, nodes in ((1, ["a", "b"]), (2, ["a"]), (2, ["a", "b"])):
        count_requests(config.privacy, record.folder, round_, nodes)
    assert _spent(record, config) == {"a": epsilon({2.0: 3}, 1e-5), "b": epsilon({2.0: 2}, 1e-5)}


def test_what_is_shown_says_what_it_does_not_cover(tmp_path: Path) -> None:
    config = _private()
    record = RunRecord(tmp_path, "run", config)
    count_requests(config.privacy, record.folder, 1, ["a"])
    spent = read_metrics(record.folder)["privacy"]
    assert spent["not_covered"] == NOT_COVERED
    most = epsilon({2.0: 1}, 1e-5)
    assert format_max_epsilon(spent) == (
        f"epsilon {most:.2f} of the updates alone, at delta 1e-05, local noise"
    )


def test_what_an_epsilon_does_not_cover_stands_in_the_documents() -> None:
    for file in ("SECURITY.md", "docker/prometheus/METRICS.md"):
        assert NOT_COVERED in " ".join((REPOSITORY / file).read_text().split())
    for dashboard in ("federation", "site"):
        panels = (REPOSITORY / f"docker/grafana/dashboards/{dashboard}.json").read_text()
        assert NOT_COVERED in panels


def test_a_line_torn_by_a_kill_counts_as_a_request_to_everybody(tmp_path: Path) -> None:
    config = _private()
    record = RunRecord(tmp_path, "run", config)
    count_requests(config.privacy, record.folder, 1, ["a", "b"])
    with (record.folder / "privacy_ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"time": 1.0, "run": "run", "round": 2, "nod')
    assert set(_spent(record, config).values()) == {epsilon({2.0: 2}, 1e-5)}
    count_requests(config.privacy, record.folder, 2, ["a"])
    assert _spent(record, config) == {"a": epsilon({2.0: 3}, 1e-5), "b": epsilon({2.0: 2}, 1e-5)}


@pytest.mark.parametrize("mode", ["local", "central"])
def test_neither_a_killed_server_nor_a_rollback_lowers_the_count(tmp_path: Path, mode: str) -> None:
    config = _private(mode)
    record = RunRecord(tmp_path, "run", config)
    for round_ in (1, 2):
        count_requests(config.privacy, record.folder, round_, ["a"])
        record.event("round_started", round=round_, nodes=["a"])
    record._lock.close()  # killed: round 1 is not in the record
    resumed = RunRecord(tmp_path, "run", _private(mode, resume=True))
    resumed.resume_after(0, None)
    count_requests(config.privacy, record.folder, 1, ["a"])
    resumed.roll_back(0)
    assert read_metrics(record.folder)["privacy"]["epsilon"] == {"a": epsilon({2.0: 3}, 1e-5)}


def test_a_run_does_not_go_on_without_the_ledger_it_began_with(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", _private())
    record._lock.close()
    (record.folder / "privacy_ledger.jsonl").unlink()
    with pytest.raises(FederationError, match=r"privacy_ledger.jsonl is missing: .* start a new run"):
        RunRecord(tmp_path, "run", _private(resume=True))


def test_a_request_that_cannot_be_counted_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "privacy_ledger.jsonl").mkdir()
    with pytest.raises(FederationError, match=r"privacy_ledger.jsonl cannot be written"):
        count_requests(PrivacyConfig(mode="local"), tmp_path, 1, ["a"])


def test_without_privacy_there_is_no_ledger(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", RunConfig())
    count_requests(PrivacyConfig(), record.folder, 1, ["a"])
    assert not (record.folder / "privacy_ledger.jsonl").exists()
    assert "privacy" not in read_metrics(record.folder)


def test_next_to_no_noise_is_recorded_as_no_privacy(tmp_path: Path) -> None:
    config = _private("central", 1e-6)
    record = RunRecord(tmp_path, "run", config)
    count_requests(config.privacy, record.folder, 1, ["a"])
    assert _spent(record, config) == {"a": None}
    assert "beyond a million" in format_max_epsilon(read_metrics(record.folder)["privacy"])


def test_a_ledger_that_is_damaged_from_end_to_end_claims_nothing(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", _private())
    (record.folder / "privacy_ledger.jsonl").write_bytes(b"\0\0\0")
    assert privacy_spent(flatten(_private()), record.folder) is None


def test_the_central_noise_does_not_cover_the_robust_rules() -> None:
    with pytest.raises(ConfigError, match=r"privacy.mode = 'central': aggregation.method = 'median'"):
        parse_run_config({"privacy.mode": "central", "aggregation.method": "median"}, "tests")


@pytest.mark.parametrize("mode", ["local", "central"])
def test_nothing_steers_by_losses_without_noise(mode: str) -> None:
    key = "training.adapt_proximal_mu"
    parse_run_config({key: True}, "tests")
    with pytest.raises(ConfigError, match=rf"{key} = true: steers by .* '{mode}' .*; set it to false"):
        parse_run_config({"privacy.mode": mode, key: True}, "tests")
