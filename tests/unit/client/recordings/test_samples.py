"""How often each of a site's recordings is drawn."""

import pytest

from client.recordings.samples import _shares
from client.recordings.sources import Source


def test_a_folder_shares_its_weight_by_the_frames_that_were_opened() -> None:
    folder, other = Source("arms", weight=2.0), Source("pick", weight=1.0)
    assert _shares([folder, folder, other], [80, 20, 7]) == pytest.approx([1.6, 0.4, 1.0])


def test_without_weights_there_are_no_shares() -> None:
    assert _shares([Source("arms"), Source("pick")], [80, 7]) == []
