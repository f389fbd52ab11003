"""so100-site personalise, with a real policy and real recordings."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.cli import main
from client.membership.folder import SiteFolder
from client.membership.join import accept, write_settings
from client.personal import main as personal
from client.personal import tune as tuning
from client.personal.main import FEDERATION, RESULT_FILE, TUNED, personalise_site
from client.personal.tune import steps_of
from client.recordings.held import Holdings
from client.recordings.sources import Source
from client.state.delivered_policy import note_delivered_policy
from federation import files
from federation.errors import ConfigError
from federation.invitation import Invitation
from federation.policy.build import build_processors
from federation.policy.folder import load_policy_folder, policy_digest, save_policy_folder
from federation.settings import PolicyConfig, TrainingConfig

pytestmark = pytest.mark.slow
TRAINING = TrainingConfig(batch_size=4, learning_rate=2e-3, num_workers=0, warmup_steps=100, proximal_mu=1.0)


@pytest.fixture
def member(
    site: SiteFolder, invitation: Invitation, data: Path, policy: Any, statistics: Any, looks: list[Path]
) -> SiteFolder:
    """A site with one recording, to which a policy was delivered."""
    expects = invitation.expects.model_copy(update={"fps": 30})
    invited = invitation.model_copy(update={"expects": expects})
    site.invitation.write_bytes(invited.write())
    accept(site, None)
    write_settings(site, invited, [Source(str(data / "site-a"))], {"sample-cache-gb": 1.0})
    save_policy_folder(site.policy, policy, build_processors(policy, statistics), "# A policy\n\nIts card.\n")
    note_delivered_policy(site.policy, "demo-1", 6, policy_digest(site.policy), TRAINING)
    return site


def test_the_policy_is_tuned_and_both_stay_with_their_figures(
    member: SiteFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watch(policy: Any, processors: Any, held: Holdings, training: TrainingConfig, *rest: Any) -> Any:
        seen.update(held=held, training=training)
        return tune(policy, processors, held, training, *rest)

    tune = tuning.tune
    monkeypatch.setattr(tuning, "tune", watch)
    delivered = policy_digest(member.policy)
    assert main(["personalise", "--folder", str(member.path), "--steps", "25"]) == 0
    result = json.loads((member.personal / RESULT_FILE).read_text())
    assert (result["run"], result["round"], result["sha256"]) == ("demo-1", 6, delivered)
    assert result["episodes"] == {"learnt": 2, "measured": 1}
    assert seen["held"].episodes == 2
    assert (seen["training"].local_steps, seen["training"].learning_rate) == (25, 2e-3)
    assert (
        result[TUNED]["policy_loss"] < result[FEDERATION]["policy_loss"]
    )  # drawn at random, it has to learn
    assert result["better"] == TUNED
    assert result[TUNED]["frames"] == result[FEDERATION]["frames"] == 40
    assert policy_digest(member.personal / FEDERATION) == policy_digest(member.policy) == delivered
    printed = capsys.readouterr().out
    assert "round 6 of demo-1: 2 episodes to learn from, 1 to measure on; 25 steps of 4 frames" in printed
    assert f"let the arm run {member.personal / TUNED}" in printed
    assert "tuned" in next(line for line in printed.splitlines() if "better here" in line)
    card = (member.personal / TUNED / "README.md").read_text()
    assert card.startswith("# A policy\n\nIts card.\n\n## Tuned at one site\n")
    assert not (member.scratch / "personal").exists()


def test_it_is_tuned_on_the_cameras_of_its_run_whatever_the_invitation_says(
    member: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PolicyConfig] = []

    def judge(sources: Any, policy: PolicyConfig, scratch: Any) -> Any:
        seen.append(policy)
        raise ConfigError("seen enough")

    monkeypatch.setattr(personal, "judge_recordings", judge)
    ran = PolicyConfig(cameras="front,wrist", empty_cameras=1, fps=15)
    for policy in (None, ran):
        note_delivered_policy(member.policy, "demo-1", 6, policy_digest(member.policy), TRAINING, policy)
        with pytest.raises(ConfigError, match="seen enough"):
            personalise_site(member)
    first, second = seen
    assert (first.cameras, first.fps) == ("top,wrist", 30)  # an earlier release wrote nothing of it
    assert (second.cameras, second.empty_cameras, second.fps) == ("front,wrist", 1, 15)


def test_what_was_tuned_is_a_policy_folder_with_the_normalisation_of_the_run(member: SiteFolder) -> None:
    personalise_site(member, steps=3)
    policy, processors = load_policy_folder(member.personal / TUNED, torch.device("cpu"))
    before, former = load_policy_folder(member.policy, torch.device("cpu"))
    changed = {
        name
        for (name, one), other in zip(policy.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert changed
    assert changed <= {name for name, p in before.named_parameters() if p.requires_grad}
    action = torch.ones(1, 6)
    np.testing.assert_array_equal(processors[1](action), former[1](action))


def test_a_policy_that_gets_worse_is_named_as_such_and_stays_too(member: SiteFolder) -> None:
    personalise_site(member, steps=15)
    first = policy_digest(member.personal / TUNED)
    # The tuned one is the delivered one now; a learning rate that spoils it.
    save = member.personal / TUNED
    note_delivered_policy(save, "demo-2", 7, first, TRAINING)
    (member.policy).rename(member.path / "former")
    save.rename(member.policy)
    result = personalise_site(member, steps=5, learning_rate=0.5)
    assert result["better"] == FEDERATION
    assert (result["run"], result["round"]) == ("demo-2", 7)
    assert policy_digest(member.personal / FEDERATION) == first != policy_digest(member.personal / TUNED)


def test_the_same_seed_gives_the_same_policy(member: SiteFolder) -> None:
    digests = []
    for seed in (0, 0, 1):
        personalise_site(member, steps=1, seed=seed)
        digests.append(policy_digest(member.personal / TUNED))
    assert digests[0] == digests[1] != digests[2]


def test_the_policy_that_is_tuned_is_the_one_that_was_there_at_first(
    member: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = policy_digest(member.policy)

    def deliver_another(policy: Any, *rest: Any) -> Any:
        shutil.rmtree(member.policy)
        return tune(policy, *rest)

    tune = tuning.tune
    monkeypatch.setattr(tuning, "tune", deliver_another)
    result = personalise_site(member, steps=1)
    assert result["sha256"] == policy_digest(member.personal / FEDERATION) == delivered


def test_a_lower_rate_than_the_lowest_of_the_run_does_not_rise(
    member: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[tuple[float, float]] = []

    def watch(policy: Any, processors: Any, held: Holdings, training: TrainingConfig, *rest: Any) -> Any:
        rates.append((training.learning_rate, training.min_learning_rate))
        return tune(policy, processors, held, training, *rest)

    tune = tuning.tune
    monkeypatch.setattr(tuning, "tune", watch)
    personalise_site(member, steps=1, learning_rate=1e-7)
    assert rates == [(1e-7, 1e-7)]


@pytest.mark.parametrize("missing", ["policy", "settings"])
def test_what_is_missing_is_one_line(
    missing: str, member: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(member, missing).rename(member.path / "away")
    assert main(["personalise", "--folder", str(member.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {"policy": "no policy yet", "settings": "so100-site join --data names one"}[missing] in line
    assert not member.personal.exists()


def test_a_failure_leaves_what_was_there(member: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    personalise_site(member, steps=1)
    before = policy_digest(member.personal / TUNED)

    def fail(*_: Any) -> None:
        raise ConfigError("no room")

    monkeypatch.setattr(tuning, "tune", fail)
    with pytest.raises(ConfigError, match="no room"):
        personalise_site(member, steps=3)
    assert policy_digest(member.personal / TUNED) == before
    assert not (member.scratch / "personal").exists()


def test_where_files_cannot_have_two_names_they_are_copied(
    member: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(files.os, "link", refuse)
    personalise_site(member, steps=1)
    assert policy_digest(member.personal / FEDERATION) == policy_digest(member.policy)


@pytest.mark.parametrize(("frames", "steps"), [(40, 100), (400, 100), (1000, 250)])
def test_more_frames_are_tuned_on_for_longer(frames: int, steps: int) -> None:
    description = SimpleNamespace(frames=4 * frames, episodes=8, usable_episodes=[0, 1])
    held: Any = SimpleNamespace(parts=[SimpleNamespace(description=description)])
    # Four passes over a quarter of the frames, two of eight episodes, in steps of 16.
    assert steps_of(TrainingConfig(batch_size=16), held) == steps
