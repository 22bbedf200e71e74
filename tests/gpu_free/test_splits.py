"""How many parts a decoding request is cut into."""

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install -e '.[test]' on Linux x86-64")

from octavo.kernels.gpu.decode_attention import num_splits  # behind the skip
from octavo.kernels.gpu.work_list import most_parts


@pytest.mark.parametrize("kv_heads", range(1, 65))
def test_parts_are_a_power_of_two_that_no_batch_exceeds(kv_heads: int) -> None:
    splits = [num_splits(requests, kv_heads) for requests in range(1, 65)]
    assert all(each.bit_count() == 1 for each in splits)
    assert splits == sorted(splits, reverse=True)
    assert splits[0] <= most_parts(kv_heads)
