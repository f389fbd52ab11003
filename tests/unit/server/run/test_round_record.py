import json

from server.run.round_record import Rejection, RoundRecord, last_update_of, recorded_rounds

# As the first release wrote a round: other keys have come since.
FIRST = {
    "round": 2,
    "clients": {"site-a": {"policy_loss": 1.0, "num_examples": 12, "skipped_frames": 0}},
    "refused": {"site-b": "its norm is 1e9"},
    "missing": ["site-c"],
    "policy_loss": {"mean": 1.0, "std": 0.0},
    "update_norm": 0.4,
    "num_examples": 12,
    "skipped_frames": 0,
    "seconds": {"train": 2.0},
}


def test_a_round_is_read_as_it_was_written() -> None:
    entry = RoundRecord(
        3,
        aggregated=False,
        rejected={"site-b": Rejection("norm", "its norm is 1e9")},
        privacy={"epsilon": {"site-a": None}},
        evaluation={"policy_loss": 1.0},
        reverted_to=1,
    )
    written = json.loads(json.dumps(entry.to_json()))
    assert written["refused"] == {"site-b": "its norm is 1e9"}
    assert written["refusal_codes"] == {"site-b": "norm"}
    assert written["rolled_back_to"] == 1
    assert RoundRecord.from_json(written) == entry


def test_a_good_update_of_a_round_that_changed_nothing_is_not_called_accepted() -> None:
    rounds = [RoundRecord(1, clients={"site-a": {}, "site-b": {}}), RoundRecord(2, aggregated=False)]
    rounds[1].clients["site-a"] = {}
    assert last_update_of(rounds, "site-a").startswith("good in round 2, which had too few others")
    assert last_update_of(rounds, "site-b") == "accepted in round 1"
    assert last_update_of(rounds, "site-c") == ""


def test_what_did_not_happen_in_a_round_is_not_written() -> None:
    written = RoundRecord(1).to_json()
    assert not {"evaluation", "privacy", "rolled_back_to", "reverted_to", "rejected"} & written.keys()
    assert written["policy_loss"] is None  # no good update


def test_a_round_of_the_first_release_and_a_key_of_a_later_one_are_read() -> None:
    first, later = recorded_rounds({"rounds": [FIRST, {"round": 3, "of a later release": 1}]})
    assert first.rejected == {"site-b": Rejection("", "its norm is 1e9")}
    assert (first.missing, first.seconds, first.capped) == (["site-c"], {"train": 2.0}, {})
    assert later == RoundRecord(3)
