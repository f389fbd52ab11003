import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, strategies
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from client import frames as frames_module
from client.frames import MAX_SKIPPED_IN_A_ROW, SKIPPED_FRAMES, FrameStream, load_batches
from client.state.optimizer import keep_optimizer_state, restore_optimizer_state
from client.training import (
    TrainingError,
    halve_if_exact,
    run_training_loop,
    run_training_step,
    setup_training_components,
)
from federation.config import RunConfig, flatten, parse_run_config
from federation.data.sample_cache import open_samples
from federation.errors import DatasetError
from federation.policy.build import trainable_parameters

pytestmark = pytest.mark.slow


def _configure(tiny_config: RunConfig, **training: object) -> RunConfig:
    changes = {f"training.{key}": value for key, value in training.items()}
    return parse_run_config(flatten(tiny_config) | changes, "test")


def _components(config, policy, weights, statistics, data: Path, cache: Path | None = None):
    samples = open_samples(data / "site-a", policy.config, cache or data, 10**9 if cache else 0)
    return setup_training_components(config, policy, weights, statistics, samples, seed=5)


def test_with_mu_zero_a_step_is_lerobots_own_step_bit_for_bit(
    tiny_config, make_policy, weights, statistics, data
) -> None:
    config = _configure(tiny_config, proximal_mu=0.0)
    ours, reference = make_policy(), make_policy()
    components = _components(config, ours, weights, statistics, data)
    batches = [components.preprocessor(_without_count(next(components.batches))) for _ in range(3)]

    torch.manual_seed(11)
    for batch in batches:
        run_training_step(components, dict(batch))

    optimizer = torch.optim.AdamW(
        [p for p in reference.parameters() if p.requires_grad],
        lr=config.training.learning_rate,
        betas=reference.config.optimizer_betas,
        eps=reference.config.optimizer_eps,
        weight_decay=config.training.weight_decay,
    )
    meters = {key: AverageMeter(key) for key in ("loss", "grad_norm", "lr", "update_s")}
    torch.manual_seed(11)
    for batch in batches:
        update_policy(
            MetricsTracker(4, 120, 3, meters, initial_step=0),
            reference,
            dict(batch),
            optimizer,
            config.training.grad_clip_norm,
            Accelerator(cpu=True),
        )
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), reference.parameters(), strict=True))


def test_accumulated_gradients_make_the_step_of_one_large_batch(
    tiny_config, make_policy, weights, statistics, data, monkeypatch
) -> None:
    """Also where one has fewer actions within its episodes. Noise and time are fixed here."""
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

    monkeypatch.setattr(VLAFlowMatching, "sample_noise", lambda _, shape, device: torch.ones(shape))
    monkeypatch.setattr(VLAFlowMatching, "sample_time", lambda _, size, device: torch.full((size,), 0.4))
    config = _configure(tiny_config, proximal_mu=0.0)
    halves, whole = make_policy(), make_policy()
    components = _components(config, halves, weights, statistics, data)
    large = components.preprocessor(_without_count(next(components.batches)))
    large["action_is_pad"][:2, 3:] = True

    def half(part: slice) -> dict:
        return {k: v[part] if isinstance(v, torch.Tensor | list) else v for k, v in large.items()}

    accumulated = run_training_step(components, half(slice(0, 2)), half(slice(2, 4)))
    at_once = run_training_step(_components(config, whole, weights, statistics, data), dict(large))
    assert accumulated.policy_loss == pytest.approx(at_once.policy_loss, rel=1e-4)
    assert accumulated.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-3)


def test_the_proximal_term_keeps_the_weights_closer(
    tiny_config, make_policy, weights, statistics, data
) -> None:
    norms = []
    for mu in (0.0, 50.0):
        config = _configure(tiny_config, proximal_mu=mu, local_steps=6)
        components = _components(config, make_policy(), weights, statistics, data)
        norms.append(run_training_loop(components, 1, 1, lambda *_: None).update_norm)
    assert norms[1] < norms[0]


def test_a_round_returns_the_update_and_its_figures(tiny_config, policy, weights, statistics, data) -> None:
    components = _components(tiny_config, policy, weights, statistics, data)
    steps = []
    result = run_training_loop(components, 1, 2, lambda step, metrics: steps.append((step, metrics)))
    assert [step for step, _ in steps] == [1, 2, 3]
    assert result.num_examples == 3 * tiny_config.training.batch_size
    assert result.policy_loss == pytest.approx(sum(m.policy_loss for _, m in steps) / 3)
    assert result.skipped_frames == 0
    for name, parameter in trainable_parameters(policy).items():
        torch.testing.assert_close(weights[name] + result.update[name], parameter.detach())
    squared = sum(u.double().square().sum().item() for u in result.update.values())
    assert result.update_norm == pytest.approx(squared**0.5)
    assert result.update_norm > 0


def test_the_same_seed_gives_the_same_update(tiny_config, make_policy, weights, statistics, data) -> None:
    first, second = (
        run_training_loop(
            _components(tiny_config, make_policy(), weights, statistics, data), 1, 2, lambda *_: None
        ).update
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_a_number_stops_the_round(tiny_config, policy, weights, statistics, data) -> None:
    components = _components(tiny_config, policy, weights, statistics, data)
    batch = components.preprocessor(_without_count(next(components.batches)))
    batch["action"] = batch["action"] * float("nan")
    with pytest.raises(TrainingError, match="policy loss is nan"):
        run_training_step(components, batch)


def _without_count(batch: dict) -> dict:
    return {key: value for key, value in batch.items() if key != SKIPPED_FRAMES}


class _Damaged(torch.utils.data.Dataset):
    """The dataset of a fault that cannot be provoked frame by frame: `bad` frames raise, as LeRobot does."""

    def __init__(self, dataset, bad: set[int]) -> None:
        self.dataset, self.bad = dataset, bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, frame: int):
        if frame in self.bad:
            raise OSError(f"frame {frame} is damaged")
        return self.dataset[frame]


def _stream(policy, data: Path, bad: set[int]) -> FrameStream:
    samples = open_samples(data / "site-a", policy.config, data, max_bytes=0)
    return FrameStream(_Damaged(samples, bad), seed=1, name="site-a")


def test_damaged_frames_are_left_out_and_counted(policy, data) -> None:
    bad = set(range(0, 120, 3))
    epoch = list(itertools.islice(_stream(policy, data, bad), 80))
    assert sum(item[SKIPPED_FRAMES] for item in epoch) == pytest.approx(len(bad), abs=2)


def test_a_stream_of_good_frames_visits_each_once_an_epoch(policy, data) -> None:
    stream = _stream(policy, data, set())
    states = [tuple(item["observation.state"].flatten().tolist()) for item in itertools.islice(stream, 120)]
    every = {
        tuple(stream.dataset[i]["observation.state"].flatten().tolist()) for i in range(len(stream.dataset))
    }
    assert set(states) == every


class _Numbers(torch.utils.data.Dataset):
    """Frames that are their own numbers; all of them damaged, if `damaged`."""

    def __init__(self, length: int, damaged: bool = False) -> None:
        self.length, self.damaged = length, damaged

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, frame: int):
        if self.damaged:
            raise OSError(f"frame {frame} is damaged")
        return {"frame": frame}


def _load(dataset: _Numbers, *, num_workers: int, batch_size: int = 5):
    stream = FrameStream(dataset, seed=1, name="site-a")
    return load_batches(stream, batch_size=batch_size, num_workers=num_workers, pin_memory=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_damaged_frames_in_a_row_are_one_line_that_names_the_data_set_and_the_frame(
    num_workers: int,
) -> None:
    with pytest.raises(DatasetError) as caught:
        next(_load(_Numbers(120, damaged=True), num_workers=num_workers))
    assert re.fullmatch(
        rf"dataset site-a: {MAX_SKIPPED_IN_A_ROW} frames in a row cannot be decoded, the last is frame "
        r"\d+; check its videos or record it again",
        str(caught.value),
    )


@given(workers=strategies.integers(0, 5), length=strategies.integers(1, 40), epochs=strategies.integers(1, 3))
def test_whatever_the_number_of_workers_each_frame_comes_once_an_epoch(
    workers: int, length: int, epochs: int
) -> None:
    def frames_of(worker: int) -> Iterator[int]:
        info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames_module, "get_worker_info", lambda: info)
            stream = iter(FrameStream(_Numbers(length), seed=1, name="site-a"))
            first = next(stream)  # until here it does not look
        return (item["frame"] for item in itertools.chain([first], stream))

    shares = itertools.cycle([frames_of(worker) for worker in range(max(1, workers))])
    seen = [next(share) for share in itertools.islice(shares, epochs * length)]
    alone = [
        item["frame"] for item in itertools.islice(FrameStream(_Numbers(length), seed=1, name=""), len(seen))
    ]
    assert seen == alone
    for epoch in itertools.batched(seen, length):
        assert sorted(epoch) == list(range(length))


def test_real_workers_share_an_epoch_out() -> None:
    batches = itertools.islice(_load(_Numbers(120), num_workers=2), 24)
    assert sorted(frame for batch in batches for frame in batch["frame"].tolist()) == list(range(120))


def test_a_video_cut_short_costs_frames_not_the_round(
    tiny_config, policy, weights, statistics, data, tmp_path
) -> None:
    import shutil

    root = Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))
    video = next((root / "videos" / "observation.images.wrist").rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    start = len(content) // 2
    content[start : start + len(content) // 8] = bytes(len(content) // 8)
    video.write_bytes(content)
    config = _configure(tiny_config, local_steps=20)
    components = _components(config, policy, weights, statistics, tmp_path)
    result = run_training_loop(components, 1, 1, lambda *_: None)
    assert result.skipped_frames > 0
    assert result.num_examples == 80


@pytest.mark.parametrize(
    ("epochs", "accumulation", "frames", "expected"), [(0.0, 1, 100, 3), (1.0, 1, 100, 25), (0.5, 3, 100, 5)]
)
def test_epochs_are_passes_over_the_sites_own_frames(
    tiny_config, epochs: float, accumulation: int, frames: int, expected: int
) -> None:
    config = _configure(tiny_config, local_epochs=epochs, gradient_accumulation_steps=accumulation)
    assert config.training.steps_in_round(frames) == expected


def test_with_epochs_a_site_takes_its_own_steps_at_the_rates_of_the_others(
    tiny_config, policy, weights, statistics, data
) -> None:
    config = _configure(tiny_config, local_epochs=0.1, local_steps=300, warmup_steps=200)
    components = _components(config, policy, weights, statistics, data)
    steps = []
    result = run_training_loop(components, 1, 2, lambda step, _: steps.append(step))
    assert steps == [1, 2, 3]  # of 120 frames a tenth, four at a time
    assert result.learning_rate == pytest.approx(config.training.learning_rate)  # two thirds of the round


def test_a_kept_optimizer_goes_on_bit_for_bit(
    tiny_config, make_policy, weights, statistics, data, tmp_path
) -> None:
    policies = make_policy(), make_policy(), make_policy()
    through, first, second = (
        _components(tiny_config, policy, weights, statistics, data) for policy in policies
    )
    batches = [through.preprocessor(_without_count(next(through.batches))) for _ in range(2)]
    for components in (through, first):
        torch.manual_seed(1)
        run_training_step(components, dict(batches[0]))
    keep_optimizer_state(tmp_path, "run", 1, first.optimizer, first.parameters)
    assert not restore_optimizer_state(tmp_path, "another", 2, second.optimizer, second.parameters)
    assert not restore_optimizer_state(tmp_path, "run", 1, second.optimizer, second.parameters)
    assert restore_optimizer_state(tmp_path, "run", 2, second.optimizer, second.parameters)
    policies[2].load_state_dict(policies[0].state_dict())
    for components in (through, second):
        torch.manual_seed(2)
        run_training_step(components, dict(batches[1]))
    assert all(
        torch.equal(a, b) for a, b in zip(policies[0].parameters(), policies[2].parameters(), strict=True)
    )


def test_a_kept_fused_optimizer_goes_on(tiny_config, policy, weights, statistics, data, tmp_path) -> None:
    components = _components(tiny_config, policy, weights, statistics, data)
    run_training_step(components, components.preprocessor(_without_count(next(components.batches))))
    keep_optimizer_state(tmp_path, "run", 1, components.optimizer, components.parameters)
    fused = torch.optim.AdamW(components.parameters.values(), fused=True)
    assert restore_optimizer_state(tmp_path, "run", 2, fused, components.parameters)
    fused.step()  # refuses a count that is not where the parameter is
    name, parameter = next(iter(components.parameters.items()))
    assert fused.state[parameter]["step"].device == parameter.device, name


def test_received_weights_are_halved_only_without_loss() -> None:
    exact = torch.randn(50).bfloat16().float()
    assert halve_if_exact(exact).dtype == torch.bfloat16
    assert torch.equal(halve_if_exact(exact).float(), exact)
    other = torch.tensor([1.0, 1 / 3])
    assert halve_if_exact(other) is other


def test_a_damaged_optimizer_state_is_dropped(
    tiny_config, policy, weights, statistics, data, tmp_path
) -> None:
    components = _components(tiny_config, policy, weights, statistics, data)
    keep_optimizer_state(tmp_path, "run", 1, components.optimizer, components.parameters)
    (file,) = (tmp_path / "optimizer").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert not restore_optimizer_state(tmp_path, "run", 2, components.optimizer, components.parameters)


def test_a_gradient_that_is_not_finite_moves_no_weight(
    tiny_config, policy, weights, statistics, data
) -> None:
    components = _components(tiny_config, policy, weights, statistics, data)
    batch = components.preprocessor(_without_count(next(components.batches)))
    next(iter(components.parameters.values())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient norm (inf|nan)"):
        run_training_step(components, batch)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in components.parameters.items())
