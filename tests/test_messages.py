"""Every message survives the wire, new fields do not break old readers, and broken frames break nobody."""

import random
import types
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.shared import messages
from octavo.shared.errors import ErrorInfo
from octavo.shared.messages import (
    TO_EXECUTOR,
    TO_GATEWAY,
    TO_SCHEDULER_FROM_EXECUTOR,
    TO_SCHEDULER_FROM_TOKENIZER,
    TO_TOKENIZER_FROM_GATEWAY,
    TO_TOKENIZER_FROM_SCHEDULER,
    Begin,
    CallId,
    Message,
    ModelInfo,
    NewRequest,
    Progress,
    Spent,
    Stats,
    call_of,
    pack,
    request_id,
    unpack,
)
from octavo.shared.sampling import SamplingParams

UNIONS: list[types.UnionType] = [
    TO_TOKENIZER_FROM_GATEWAY,
    TO_GATEWAY,
    TO_SCHEDULER_FROM_TOKENIZER,
    TO_TOKENIZER_FROM_SCHEDULER,
    TO_EXECUTOR,
    TO_SCHEDULER_FROM_EXECUTOR,
]
PAIRS = [(union, kind) for union in UNIONS for kind in get_args(union)]
NAMES = [kind.__name__ for _, kind in PAIRS]
DROPPED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What transport._decode catches."""
NUM_MUTATIONS = 400  # of each message

INT32 = st.integers(-(2**31), 2**31 - 1)

# msgspec's limits on SamplingParams hold only when decoding, so hypothesis must be told of them.
st.register_type_strategy(
    SamplingParams,
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 2**31),
        temperature=st.floats(0, 2),
        top_p=st.floats(0.01, 1),
        top_k=st.integers(0, 2**31),
        min_p=st.floats(0, 1),
        seed=st.integers(0, 2**63 - 1),
        stop_token_ids=st.lists(INT32, max_size=3).map(tuple),
    ),
)


def struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Any value of a message: each field by its type, integers within 64 bits."""
    return st.builds(kind, **{name: _field(hint) for name, hint in get_type_hints(kind).items()})


def _field(hint: object) -> st.SearchStrategy[object]:
    if hint is int:
        return st.integers(-(2**63), 2**64 - 1)
    if hint is float:
        return st.floats(allow_nan=False)
    if hint == int | None:
        return st.none() | _field(int)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint is not SamplingParams:
        return struct(hint)
    if get_args(hint) and any(_is_struct(each) for each in get_args(hint)):
        kind = next(each for each in get_args(hint) if _is_struct(each))
        if isinstance(hint, types.UnionType):
            return st.none() | struct(kind)
        if len(get_args(hint)) == 2:
            return st.dictionaries(st.integers(0, 9), struct(kind), max_size=3)
        return st.lists(struct(kind), max_size=3)
    if get_args(hint) == (int, str):
        return st.dictionaries(st.integers(0, 9), st.sampled_from(["stop", "length"]))
    if get_args(hint) == (int, bytes):
        return st.dictionaries(st.integers(0, 9), st.binary(max_size=8), max_size=3)
    if hint == list[int]:
        return st.lists(INT32, max_size=5)
    return st.from_type(hint)  # type: ignore[arg-type]  # any type hint will do


def _is_struct(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def sample(kind: type[msgspec.Struct], seed: int) -> msgspec.Struct:
    """A message without hypothesis, with something in every field."""
    draw = random.Random(seed)
    by_type: dict[object, object] = {
        int: draw.randrange(2**31), str: "text", bytes: draw.randbytes(18), bool: True,
        Stats: Stats(*range(10)), ModelInfo: ModelInfo(1, 2, 3, 4, 5, 6, "cpu", "float32"),
        ErrorInfo: ErrorInfo(400, "wrong", "prompt", None, 1), SamplingParams: SamplingParams(5),
        Stats | None: Stats(), ModelInfo | None: None,
        dict[int, Progress]: {0: Progress(b"1234", 2)}, dict[int, str]: {0: "stop"},
        dict[int, bytes]: {0: b"1234"}, dict[int, Begin]: {0: Begin(0.5, 0.25)},
        dict[int, Spent]: {0: Spent(3, 4, Begin(0.5, 0.25), 1.0)},
        list[NewRequest]: [NewRequest(1, b"1234", 0, b"1234", SamplingParams(5, stop_token_ids=(1, 2)))],
        list[bytes]: [b"a", b"b"], list[int]: [0, 1],
    }  # fmt: skip
    hints = {name: _plain(hint) for name, hint in get_type_hints(kind).items()}
    return kind(**{name: by_type[hint] for name, hint in hints.items()})


def _plain(hint: object) -> object:
    """A NewType as the type that it stands for."""
    if get_args(hint) and hasattr(get_args(hint)[0], "__supertype__"):
        return list[bytes]
    return getattr(hint, "__supertype__", hint)


def test_every_message_is_in_a_union() -> None:
    kinds = {value for value in vars(messages).values() if _is_struct(value) and issubclass(value, Message)}
    assert kinds - {Message} == {kind for _, kind in PAIRS}


@pytest.mark.parametrize(("union", "kind"), PAIRS, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_message_survives_the_wire(union: types.UnionType, kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(struct(kind))
    frame = msgspec.msgpack.encode(message)
    decoded = msgspec.msgpack.Decoder(union).decode(frame)  # type: ignore[arg-type]  # a union is no type[T]
    assert type(decoded) is kind
    assert decoded == message


@pytest.mark.parametrize(("union", "kind"), PAIRS, ids=NAMES)
def test_fields_that_a_reader_does_not_know_are_ignored(union: types.UnionType, kind: type[Message]) -> None:
    message = sample(kind, seed=1)
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    frame = msgspec.msgpack.encode([*fields, 5, b"new", {"a": None}])
    assert msgspec.msgpack.decode(frame, type=union) == message


@pytest.mark.parametrize(("union", "kind"), PAIRS, ids=NAMES)
def test_a_broken_frame_raises_nothing_but_what_is_caught(union: types.UnionType, kind: type[Message]) -> None:
    decoder = msgspec.msgpack.Decoder(union)  # type: ignore[arg-type]  # a union is no type[T]
    whole = msgspec.msgpack.encode(sample(kind, seed=2))
    draw = random.Random(3)
    num_dropped = 0
    for _ in range(NUM_MUTATIONS):
        frame = _mutate(whole, draw)
        try:
            decoder.decode(frame)
        except DROPPED:
            num_dropped += 1
    assert num_dropped > NUM_MUTATIONS // 10


def _mutate(frame: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut off, left out or put in."""
    mutated = bytearray(frame)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(mutated) or 1)
        change = draw.randrange(4)
        if change == 0:
            mutated[place : place + 1] = draw.randbytes(1)
        elif change == 1:
            del mutated[place:]
        elif change == 2:
            del mutated[place : place + draw.randint(1, 4)]
        else:
            mutated[place:place] = draw.randbytes(draw.randint(1, 4))
    return bytes(mutated)


@pytest.mark.parametrize("frame", [b"", b"\x90" * 5, b"\xc1", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\xa1\xff"])
@pytest.mark.parametrize("union", UNIONS, ids=str)
def test_a_hostile_frame_raises_nothing_but_what_is_caught(union: types.UnionType, frame: bytes) -> None:
    with pytest.raises(DROPPED):
        msgspec.msgpack.decode(frame, type=union)


@pytest.mark.parametrize("union", UNIONS, ids=str)
def test_a_message_of_another_edge_is_dropped(union: types.UnionType) -> None:
    strangers = {kind for _, kind in PAIRS} - set(get_args(union))
    for kind in strangers:
        with pytest.raises(DROPPED):
            msgspec.msgpack.decode(msgspec.msgpack.encode(sample(kind, seed=4)), type=union)


@settings(deadline=None)
@given(st.lists(INT32))
def test_packed_values_are_little_endian_and_come_back(values: list[int]) -> None:
    packed = pack(values)
    assert packed == b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    assert unpack(packed).tolist() == values


def test_values_beyond_int32_cannot_be_packed() -> None:
    with pytest.raises(OverflowError):
        pack([2**31])


def test_bytes_that_are_no_whole_values_cannot_be_unpacked() -> None:
    with pytest.raises(ValueError):
        unpack(b"12345")


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**16 - 1))
def test_a_request_id_tells_its_call_and_index(call: bytes, index: int) -> None:
    id = request_id(CallId(call), index)
    assert len(id) == 18
    assert call_of(id) == (call, index)
