"""The tokenizer's core: calls become requests, tokens become text, and both survive what can go wrong."""

import json

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.tokenizer.core_harness import (
    CALL,
    END,
    MODEL,
    TEMPLATE,
    Pipeline,
    Read,
    chat,
    completion,
    encode,
    events,
    journal,
    make_vocabulary,
    output_ids,
)

from octavo.shared.errors import ErrorInfo
from octavo.shared.messages import Begin, CancelCall, Generate, Heartbeat, Ready, Refused, Stats, request_id, unpack
from octavo.shared.prefix_hash import hash_blocks, root_hash

FIRST = request_id(CALL, 0)


def test_a_call_becomes_one_request_with_its_prompt_and_hashes() -> None:
    pipeline = Pipeline()
    [request] = pipeline.send(completion(prompt="a" * 40, max_tokens=9, temperature=0.5, seed=3))
    assert request.id == FIRST
    assert unpack(request.prompt_ids).tolist() == encode("a" * 40)
    assert request.block_hashes == root_hash(b"") + hash_blocks(request.prompt_ids, 16, b"")
    assert (request.params.max_tokens, request.params.temperature, request.params.seed) == (9, 0.5, 3)
    assert request.params.stop_token_ids == (END,)
    assert request.output_ids == b""


def test_tenants_with_different_salts_share_no_block() -> None:
    one, other = (
        Pipeline().send(msgspec.structs.replace(completion(prompt="a" * 40), salt=salt))[0] for salt in (b"a", b"b")
    )
    assert one.prompt_ids == other.prompt_ids
    assert one.block_hashes[:16] != other.block_hashes[:16]
    assert one.block_hashes[16:32] != other.block_hashes[16:32]


def test_tokens_become_text_as_they_come() -> None:
    pipeline = Pipeline()
    pipeline.send(chat())
    for place, token in enumerate(encode("héllo")):
        pipeline.tokens(FIRST, place, [token])
    pipeline.tokens(FIRST, len(encode("héllo")), [END], "stop")
    read = Read(pipeline.chunks)
    assert (read.text, read.roles, read.reasons) == ("héllo", ["assistant"], ["stop"])
    assert pipeline.is_finished
    assert pipeline.chunks[-1][0].endswith(b"data: [DONE]\n\n")


def test_a_character_is_not_sent_before_its_last_byte_is_there() -> None:
    pipeline = Pipeline()
    pipeline.send(completion())
    first, *rest = encode("\N{GRINNING FACE}")
    pipeline.tokens(FIRST, 0, [first])
    pipeline.tokens(FIRST, 0, [first])  # told again
    assert Read(pipeline.chunks).text == "" and [unpack(each[2]).tolist() for each in pipeline.chunks] == [[first]]
    pipeline.tokens(FIRST, 1, rest)
    assert Read(pipeline.chunks).text == "\N{GRINNING FACE}"
    assert [unpack(each[2]).tolist() for each in pipeline.chunks] == [[first], rest]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("completion", {"prompt": "Hi"}),
        ("chat", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("responses", {"input": "Hi"}),
        ("messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}),
    ],
)
def test_the_end_of_a_call_says_what_it_came_to(endpoint: str, fields: dict[str, object], streams: bool) -> None:
    pipeline = Pipeline()
    body = json.dumps(fields | {"stream": streams}).encode()
    [request] = pipeline.send(Generate(CALL, endpoint, body, 1, "model"))
    pipeline.tokens(FIRST, 0, encode("y"), begin=Begin(0.25, 0.5))
    pipeline.tokens(FIRST, 1, encode("es"))
    pipeline.tokens(FIRST, 3, [END], "stop")
    spent = pipeline.spent
    assert (spent.prompt_tokens, spent.output_tokens) == (len(unpack(request.prompt_ids)), 4)
    assert spent.begin == Begin(0.25, 0.5) and 0 < spent.decode_s < 5


def test_of_several_choices_the_one_that_begins_first_tells_of_the_beginning() -> None:
    pipeline = Pipeline()
    pipeline.send(completion(n=2, prompt="Hi", max_tokens=1))
    pipeline.tokens(request_id(CALL, 1), 0, encode("a"), "length", Begin(1.0, 2.0))
    pipeline.tokens(FIRST, 0, encode("b"), "length", Begin(3.0, 4.0))
    spent = pipeline.spent
    assert (spent.prompt_tokens, spent.output_tokens, spent.begin) == (2, 2, Begin(1.0, 2.0))


def test_prompts_and_choices_are_numbered_prompt_by_prompt() -> None:
    pipeline = Pipeline()
    requests = pipeline.send(completion(prompt=["one", "two"], n=2, seed=5))
    assert [request.id for request in requests] == [request_id(CALL, index) for index in range(4)]
    assert [unpack(request.prompt_ids).tolist() for request in requests] == [
        encode(text) for text in ("one", "one", "two", "two")
    ]
    assert [request.params.seed for request in requests] == [5, 6, 5, 6]


def test_a_call_ends_with_the_last_of_its_choices() -> None:
    pipeline = Pipeline()
    requests = pipeline.send(completion(prompt=["one", "two"], n=2, stream_options={"include_usage": True}))
    for request in reversed(requests):
        assert not pipeline.is_finished
        pipeline.tokens(request.id, 0, [*encode("yes"), END], "stop")
    assert pipeline.is_finished
    assert [Read(pipeline.chunks, index).text for index in range(4)] == ["yes"] * 4
    # Each prompt counts once, and each completion with its end.
    usage = {"prompt_tokens": len(encode("onetwo")), "completion_tokens": 16}
    assert events(pipeline.chunks)[-1]["usage"] == usage | {"total_tokens": usage["prompt_tokens"] + 16}


def test_a_call_that_does_not_stream_gets_one_body() -> None:
    pipeline = Pipeline()
    requests = pipeline.send(chat(stream=False, n=2))
    pipeline.tokens(requests[0].id, 0, encode("first"))
    pipeline.tokens(requests[1].id, 0, [*encode("second"), END], "stop")
    assert pipeline.chunks == []
    pipeline.tokens(requests[0].id, 5, [], "length")
    [(body, _, token_ids, _)] = pipeline.chunks
    answer = msgspec.json.decode(body)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["first", "second"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "stop"]
    assert token_ids == b""
    assert pipeline.is_finished


def test_a_stop_string_ends_the_request_at_the_scheduler_too() -> None:
    pipeline = Pipeline()
    pipeline.send(completion(stop="END", return_token_ids=True))
    ids = encode("one ENDING")
    pipeline.tokens(FIRST, 0, ids)
    read = Read(pipeline.chunks)
    assert (read.text, read.reasons) == ("one ", ["stop"])
    assert read.token_ids == encode("one END")
    assert pipeline.cancelled == [FIRST]
    assert pipeline.is_finished
    pipeline.tokens(FIRST, len(ids), encode("more"))
    assert len(pipeline.texts) == 1


def test_a_stop_string_of_which_only_the_beginning_comes_is_text() -> None:
    pipeline = Pipeline()
    pipeline.send(completion(stop=["END"]))
    pipeline.tokens(FIRST, 0, encode("the EN"))
    assert Read(pipeline.chunks).text == "the "
    pipeline.tokens(FIRST, len(encode("the EN")), [END], "stop")
    assert Read(pipeline.chunks).text == "the EN"
    assert pipeline.cancelled == []


def test_tokens_that_are_missing_are_asked_for_and_nothing_is_shown_before() -> None:
    pipeline = Pipeline()
    pipeline.send(completion())
    pipeline.tokens(FIRST, 0, encode("on"))
    pipeline.tokens(FIRST, 3, encode("x"))
    assert output_ids(pipeline.enqueued[-1]) == encode("on")
    assert Read(pipeline.chunks).text == "on"
    pipeline.tokens(FIRST, 2, encode("e more"))
    assert Read(pipeline.chunks).text == "one more"


def test_tokens_that_come_twice_are_shown_once() -> None:
    pipeline = Pipeline()
    pipeline.send(completion())
    ids = encode("one two")
    pipeline.tokens(FIRST, 0, ids[:4])
    pipeline.tokens(FIRST, 0, ids[:3])
    pipeline.tokens(FIRST, 2, ids[2:])
    assert Read(pipeline.chunks).text == "one two"


def test_an_end_that_comes_with_tokens_already_known_still_ends() -> None:
    pipeline = Pipeline()
    pipeline.send(completion())
    pipeline.tokens(FIRST, 0, encode("one"))
    pipeline.tokens(FIRST, 0, encode("one"), "length")
    assert (Read(pipeline.chunks).text, Read(pipeline.chunks).reasons) == ("one", ["length"])


@pytest.mark.parametrize("boot", [b"boot", b"another"])
def test_a_scheduler_that_greets_anew_gets_every_open_request_with_its_output(boot: bytes) -> None:
    pipeline = Pipeline()
    done, half, fresh = pipeline.send(completion(n=3))
    pipeline.tokens(done.id, 0, [END], "stop")
    pipeline.tokens(half.id, 0, encode("half"))
    num_before = len(pipeline.enqueued)
    pipeline.ready(boot)
    again = pipeline.enqueued[num_before:]
    assert [request.id for request in again] == [half.id, fresh.id]
    assert [output_ids(request) for request in again] == [encode("half"), []]
    assert again[1] == fresh


def test_what_stands_still_is_asked_for_again() -> None:
    pipeline = Pipeline()
    waiting, running = pipeline.send(completion(n=2))
    num_before = len(pipeline.enqueued)
    pipeline.core.ask_again()
    pipeline.tokens(running.id, 0, encode("on"))
    pipeline.core.ask_again()
    pipeline.collect()
    assert pipeline.enqueued[num_before:] == [waiting]


def test_a_refused_request_fails_its_call_and_cancels_the_others() -> None:
    pipeline = Pipeline()
    requests = pipeline.send(completion(n=3))
    error = ErrorInfo(429, "too many streams", retry_after_s=2)
    pipeline.core.hear_scheduler(Refused(requests[1].id, error))
    pipeline.collect()
    assert [(failure.id, failure.error) for failure in pipeline.failures] == [(CALL, error)]
    assert set(pipeline.cancelled) >= {requests[0].id, requests[2].id}
    pipeline.tokens(requests[0].id, 0, encode("late"))
    assert pipeline.texts == []


def test_a_cancelled_call_cancels_its_open_requests() -> None:
    pipeline = Pipeline()
    done, open_ = pipeline.send(completion(n=2))
    pipeline.tokens(done.id, 0, [END], "stop")
    pipeline.send(CancelCall(CALL))
    assert pipeline.cancelled == [open_.id]
    pipeline.send(CancelCall(CALL))
    assert pipeline.cancelled == [open_.id]


def test_a_gateway_that_is_gone_takes_its_calls_with_it() -> None:
    pipeline = Pipeline()
    pipeline.send(completion(), gateway=1)
    pipeline.core.lose_gateway(0)
    pipeline.collect()
    assert pipeline.cancelled == []
    pipeline.core.lose_gateway(1)
    pipeline.collect()
    assert pipeline.cancelled == [FIRST]


def test_a_call_before_there_is_a_model_is_told_to_come_back() -> None:
    pipeline = Pipeline(is_ready=False)
    pipeline.send(completion())
    assert [(failure.error.status, failure.error.retry_after_s) for failure in pipeline.failures] == [(503, 1)]


def test_a_call_that_cannot_be_prepared_says_why_and_leaves_nothing() -> None:
    pipeline = Pipeline()
    assert pipeline.send(completion(prompt="a" * 5000)) == []
    [failure] = pipeline.failures
    assert failure.error.status == 400
    assert failure.error.param == "prompt"
    pipeline.send(CancelCall(CALL))
    assert pipeline.cancelled == []


def test_readiness_and_counters_are_the_schedulers() -> None:
    pipeline = Pipeline(is_ready=False)
    core = pipeline.core
    assert not core.is_ready
    core.hear_scheduler(Ready(b"boot", MODEL, Stats(num_blocks=7)))
    assert core.is_ready
    assert core.stats == Stats(num_blocks=7)  # whoever hears that all is ready can be shown the counters
    core.hear_scheduler(Heartbeat(False, Stats(num_running=3)))
    assert not core.is_ready
    assert core.stats == Stats(num_running=3)
    core.hear_scheduler(Heartbeat(True))
    assert core.is_ready
    core.lose_scheduler()
    assert not core.is_ready


_TEXTS = st.text("ab é\N{GRINNING FACE}\x00END", max_size=25)
_STOPS = st.lists(st.sampled_from(["END", "EN", "b a", "é\N{GRINNING FACE}", "\N{GRINNING FACE}", "ab"]), max_size=2)


@settings(deadline=None, max_examples=300)  # the machine may be busy
@given(texts=st.lists(_TEXTS, min_size=1, max_size=2), stops=_STOPS, is_chat=st.booleans(), data=st.data())
def test_a_call_that_changes_tokenizers_anywhere_reads_as_if_it_had_not(
    texts: list[str], stops: list[str], is_chat: bool, data: st.DataObject
) -> None:
    fields = {
        "n": len(texts),
        "stop": stops,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    message = chat(**fields) if is_chat else completion(**fields)
    completions = [[*encode(text), END] for text in texts]
    turns = data.draw(st.permutations([index for index, ids in enumerate(completions) for _ in ids]))
    undisturbed = Pipeline()
    undisturbed.send(message)
    _speak(undisturbed, completions, turns)
    cut = data.draw(st.integers(0, len(undisturbed.chunks)))
    passed_on = undisturbed.chunks[:cut]

    second = Pipeline()
    resumed = msgspec.structs.replace(message, progress=journal(passed_on))
    _resume(second, resumed, completions, data.draw(st.integers(1, 8)), data.draw(st.integers(0, 3)))

    if cut == len(undisturbed.chunks):
        assert second.chunks == []  # the first one had said everything
    for index in range(len(texts)):
        whole, both = Read(undisturbed.chunks, index), Read(passed_on + second.chunks, index)
        assert vars(both) == vars(whole)
        assert both.roles == (["assistant"] if is_chat else [])
    assert events(passed_on + second.chunks)[-1] == events(undisturbed.chunks)[-1]


CALL_OF_A_TOOL = '<tool_call>{"name": "f", "arguments": {"a": [1, "</tool_call>"]}}</tool_call>'
_PARTS = st.sampled_from(["<think>", "hm", "</think>", "\n", "é", CALL_OF_A_TOOL, CALL_OF_A_TOOL[:30], "<tool"])


@settings(deadline=None, max_examples=150)  # the machine may be busy
@given(parts=st.lists(_PARTS, min_size=1, max_size=5), logprobs=st.booleans(), data=st.data())
def test_reasoning_and_calls_are_the_same_whoever_goes_on(
    parts: list[str], logprobs: bool, data: st.DataObject
) -> None:
    vocabulary = make_vocabulary(TEMPLATE + "{# <tool_call> <think> #}")
    tools = [{"type": "function", "function": {"name": "f"}}]
    message = chat(tools=tools, logprobs=logprobs, return_token_ids=True)
    completion = [*encode("".join(parts)), END]
    assume(len(completion) < 200)  # what the request has as its max_tokens
    undisturbed = Pipeline(vocabulary)
    undisturbed.send(message)
    _speak(undisturbed, [completion], [0] * len(completion))
    cut = data.draw(st.integers(0, len(undisturbed.chunks)))
    passed_on = undisturbed.chunks[:cut]

    second = Pipeline(vocabulary)
    resumed = msgspec.structs.replace(message, progress=journal(passed_on))
    _resume(second, resumed, [completion], data.draw(st.integers(1, 8)), data.draw(st.integers(0, 3)))

    assert _read(passed_on + second.chunks) == _read(undisturbed.chunks)


def _read(chunks: list[tuple[bytes, int, bytes, int]]) -> dict[str, str]:
    """What a client puts together: reasoning, content, calls and the end."""
    read: dict[str, str] = {}
    for event in events(chunks):
        [choice] = event["choices"]  # type: ignore[misc]  # parsed JSON
        for name in ("reasoning", "content"):
            read[name] = read.get(name, "") + (choice["delta"].get(name) or "")
        for call in choice["delta"].get("tool_calls", ()):
            for name in ("name", "arguments"):
                place = f"{name} {call['index']}"
                read[place] = read.get(place, "") + call["function"].get(name, "")
        if choice["finish_reason"]:
            read["end"] = read.get("end", "") + choice["finish_reason"]
    return read


def _speak(pipeline: Pipeline, completions: list[list[int]], turns: list[int]) -> None:
    """One token after another, of whichever request has its turn."""
    places = [0] * len(completions)
    for index in turns:
        place = places[index]
        is_last = place == len(completions[index]) - 1
        token = completions[index][place]
        pipeline.tokens(request_id(CALL, index), place, [token], "stop" if is_last else None)
        places[index] += 1


def _resume(
    pipeline: Pipeline, message: Generate, completions: list[list[int]], num_at_once: int, overlap: int
) -> None:
    """A scheduler that has the requests sends what they lack, and some that they have, in larger portions."""
    for request in pipeline.send(message):
        index = int.from_bytes(request.id[16:], "little")
        ids = completions[index]
        for start in range(max(0, len(output_ids(request)) - overlap), len(ids), num_at_once):
            portion = ids[start : start + num_at_once]
            is_last = start + len(portion) == len(ids)
            pipeline.tokens(request.id, start, portion, "stop" if is_last else None)
