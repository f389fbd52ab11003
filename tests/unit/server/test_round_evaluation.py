"""What follows from the evaluation of a round."""

from pathlib import Path

import pytest

from federation.config import RunConfig
from server.round_evaluation import RevertedError, stop_after_reverts
from server.run.records import RunRecord
from server.run.round_record import RoundRecord


def test_a_run_that_is_reverted_again_and_again_fails_with_what_to_do(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", RunConfig())
    for round_ in (1, 2):
        record.round_finished(RoundRecord(round_, reverted_to=0))
        stop_after_reverts(record)
    record.round_finished(RoundRecord(3, reverted_to=0))
    with pytest.raises(RevertedError, match=r"3 evaluations in a row .* lower training.learning_rate"):
        stop_after_reverts(record)
