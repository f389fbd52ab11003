import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.errors import FederationError
from federation.messages import ANSWER, STATISTICS
from server import join_answer
from tests.unit.server.replies import make_answer

pytestmark = pytest.mark.slow

KEYS = ["name", "fps", "episodes", "frames", "left_out", "cameras", "versions", "device", "adapter"]
SCALARS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
SCALARS |= st.booleans() | st.lists(st.text(max_size=8), max_size=3) | st.lists(st.integers(0, 9))
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32]), hnp.array_shapes(max_side=7), elements=st.just(1)
)
RECORDS = (
    st.dictionaries(st.sampled_from(KEYS), SCALARS).map(ConfigRecord)
    | st.dictionaries(st.text(max_size=8), st.integers(0, 9)).map(MetricRecord)
    | st.dictionaries(
        st.sampled_from(["action/mean", "action/std", "observation.state/sketch", "x"]), ARRAYS.map(Array)
    ).map(ArrayRecord)
)


@given(st.dictionaries(st.sampled_from([ANSWER, STATISTICS, "other"]), RECORDS))
def test_whatever_a_stranger_answers_it_is_refused_with_one_line(reported, content: dict) -> None:
    with pytest.raises(FederationError) as refusal:
        join_answer.read_answer(1, RecordDict(content))
    assert "\n" not in str(refusal.value)


@given(st.dictionaries(st.sampled_from(KEYS), SCALARS))
def test_whatever_a_node_says_of_itself_makes_a_node_or_one_line(reported, changes: dict) -> None:
    try:
        node = join_answer.read_answer(1, make_answer(**{"name": "x", "reported": reported, **changes}))
    except FederationError as error:
        assert "\n" not in str(error)
    else:
        assert node.name.isprintable()
        assert 1 <= node.fps <= 1000
        assert 1 <= node.episodes <= node.frames <= 10**9
        assert len(node.cameras) <= 16
        assert len(node.adapter) <= 8
