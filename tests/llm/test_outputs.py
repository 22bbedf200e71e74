"""What is read from the API's answers, and what is sent for parameters."""

import pytest

from octavo import Logprob, SamplingParams, StructuredOutputsParams
from octavo.services.llm.outputs import Collector, error_of
from octavo.services.llm.sampling_params import body_fields
from octavo.shared.errors import Overloaded, RequestError

COMPLETION = b"""{"choices": [{"index": 0, "text": "a b", "token_ids": [7, 8], "prompt_token_ids": [1, 2],
  "finish_reason": "stop", "stop_reason": 8, "prompt_logprobs": [null, {"2": {"logprob": -0.5, "rank": 3,
  "decoded_token": "x"}}], "logprobs": {"text_offset": [0, 1], "tokens": ["token_id:7", "token_id:8"],
  "token_logprobs": [-1.0, -3.0], "top_logprobs": [{"token_id:7": -1.0, "token_id:9": -2.0},
  {"token_id:8": -3.0, "token_id:5": -0.25, "token_id:6": -1.5}]}}]}"""

CHAT = b"""{"choices": [{"index": 0, "token_ids": [7], "prompt_token_ids": [1],
  "message": {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls",
  "logprobs": {"content": [{"token": "token_id:7", "logprob": -1.0, "bytes": [], "top_logprobs": [
  {"token": "token_id:5", "logprob": -0.5, "bytes": []}, {"token": "token_id:7", "logprob": -1.0, "bytes": []}]}]}}]}"""


def test_a_completions_logprobs_are_by_token_id_with_ranks() -> None:
    collector = Collector("0", "text", num_top=2)
    collector.add(COMPLETION)
    [output] = collector.output.outputs

    assert output.logprobs == [
        {7: Logprob(-1.0, 1), 9: Logprob(-2.0, 2)},
        {8: Logprob(-3.0, None), 5: Logprob(-0.25, 1), 6: Logprob(-1.5, 2)},
    ]
    assert output.cumulative_logprob == -4.0
    assert (output.text, output.finish_reason, output.stop_reason) == ("a b", "stop", 8)
    assert collector.output.prompt_token_ids == [1, 2]
    assert collector.output.prompt_logprobs == [None, {2: Logprob(-0.5, 3, "x")}]


def test_a_chats_message_and_logprobs_are_read() -> None:
    collector = Collector("0", None, num_top=2)
    collector.add(CHAT)
    [output] = collector.output.outputs

    assert output.logprobs == [{7: Logprob(-1.0, 2), 5: Logprob(-0.5, 1)}]
    assert (output.text, output.finish_reason) == ("", "tool_calls")
    assert output.message is not None and output.message["tool_calls"] == [{"id": "1"}]


def test_chunks_of_several_choices_are_joined() -> None:
    collector = Collector("0", None, num_choices=2)
    for event in (
        b'{"choices": [{"index": 1, "delta": {"role": "assistant", "content": ""}, "prompt_token_ids": [4, 5]}]}',
        b'{"choices": [{"index": 1, "delta": {"content": "one"}, "token_ids": [1]}]}',
        b'{"choices": [{"index": 0, "delta": {"content": "zero"}, "token_ids": [0], "finish_reason": "length"}]}',
    ):
        collector.add(event)
    before = collector.copy()
    collector.add(b'{"choices": [{"index": 1, "delta": {"content": "!"}, "token_ids": [2], "finish_reason": "stop"}]}')

    assert [each.text for each in before.outputs] == ["zero", "one"]
    assert [each.token_ids for each in before.outputs] == [[0], [1]]
    assert not before.finished and collector.output.finished
    assert collector.output.outputs[1].text == "one!"
    assert collector.output.prompt_token_ids == [4, 5]
    with pytest.raises(RequestError, match="^it broke$"):
        collector.add(b'{"error": {"message": "it broke", "type": "server_error", "code": 500}}')


def test_errors_are_those_of_the_status_in_the_servers_words() -> None:
    error = error_of(429, b'{"error": {"message": "later", "param": "n"}}', "prompt 3: ")
    assert isinstance(error, Overloaded)
    assert (str(error), error.param) == ("prompt 3: later", "n")
    assert str(error_of(502, b"<html>bad gateway")) == "the server answered 502: <html>bad gateway"


def test_only_what_was_asked_for_is_sent_but_for_what_models_have_defaults_of() -> None:
    common = {"return_token_ids": True, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert body_fields(None, is_chat=True) == {"max_tokens": 16, "return_token_ids": True}
    assert body_fields(SamplingParams(), is_chat=True) == common | {"max_tokens": 16, "temperature": 1.0}

    params = SamplingParams(
        temperature=0, max_tokens=3, stop=["x"], logit_bias={5: -1.0}, logprobs=2, detokenize=False,
        structured_outputs=StructuredOutputsParams(choice=["a", "b"]),
    )  # fmt: skip
    wanted = common | {"temperature": 0, "max_tokens": 3, "stop": ["x"], "logit_bias": {"5": -1.0}}
    wanted |= {"structured_outputs": {"choice": ["a", "b"]}, "return_tokens_as_token_ids": True}
    assert body_fields(params, is_chat=False) == wanted | {"logprobs": 2}
    assert body_fields(params, is_chat=True) == wanted | {"logprobs": True, "top_logprobs": 2}


def test_a_parameter_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
