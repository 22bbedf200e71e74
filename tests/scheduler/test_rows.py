"""Rows sorted by tokenizer."""

from array import array

from octavo.services.scheduler.request import Request
from octavo.services.scheduler.rows import group_rows
from octavo.shared.messages import RequestId, pack, unpack
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address


def make_request(id: bytes, route: bytes, num_output: int) -> Request:
    request = Request(RequestId(id), Address(route), SamplingParams(10), array("i", [1, 2]), b"")
    request.token_ids.extend([0] * num_output)
    return request


def test_rows_go_to_their_tokenizers_in_order() -> None:
    owners = [make_request(b"a", b"x", 0), make_request(b"b", b"y", 1), None, make_request(b"c", b"x", 2)]
    groups = group_rows(owners)
    assert [(group.route, group.ids) for group in groups] == [(b"x", [b"a", b"c"]), (b"y", [b"b"])]
    assert [list(group.choose([10, 11, 12, 13])) for group in groups] == [[10, 13], [11]]


def test_a_tokenizer_that_has_all_rows_gets_all_tokens() -> None:
    [group] = group_rows([make_request(b"a", b"x", 0)])
    assert group.choose([10]) == [10]


def test_starts_move_on_with_the_requests() -> None:
    requests = [make_request(b"%d" % count, b"x", count) for count in (0, 255, 65_535, 2**24)]
    [group] = group_rows(requests)
    assert unpack(group.starts()).tolist() == [0, 255, 65_535, 2**24]
    for request in requests:
        request.token_ids.extend([7, 7, 7])
    assert unpack(group.starts()).tolist() == [3, 258, 65_538, 2**24 + 3]


def test_a_message_says_who_ends() -> None:
    [group] = group_rows([make_request(b"a", b"x", 0), make_request(b"b", b"x", 0)])
    message = group.message(pack([0, 0]), [5, 6], {RequestId(b"b"): "stop", RequestId(b"other"): "length"})
    assert message.finished == {1: "stop"}
    assert unpack(message.token_ids).tolist() == [5, 6]


def test_without_owners_there_are_no_groups() -> None:
    assert group_rows([None, None]) == []
