"""The anthropic package's own examples, against a server with the default model."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.tools.server import Server

anthropic = pytest.importorskip("anthropic", reason="needs anthropic: pip install anthropic")

pytestmark = pytest.mark.clients

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY = {"temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(server: Server, key: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=300) as client:
        yield client


def test_a_message(client: Any, model: str) -> None:
    answer = client.messages.create(
        model=model, max_tokens=24, system="Answer in one sentence.", messages=JAPAN, extra_body=GREEDY
    )
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", model)
    assert "Tokyo" in answer.content[0].text
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0


def test_a_message_streamed(client: Any, model: str) -> None:
    wanted = {"model": model, "max_tokens": 24, "messages": JAPAN, "extra_body": GREEDY}
    with client.messages.stream(**wanted) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "Tokyo" in text and final.content[0].text == text
    kinds = [event.type for event in client.messages.create(**wanted, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_goes_back(client: Any, model: str, choice: dict[str, str]) -> None:
    wanted = {"model": model, "max_tokens": 100, "tools": [WEATHER], "extra_body": GREEDY}
    answer = client.messages.create(messages=PARIS, tool_choice=choice, **wanted)
    [use] = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert use.name == "get_weather" and "Paris" in use.input["city"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees and sunny"}
    going_on = [*PARIS, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=going_on, tool_choice={"type": "none"}, **wanted).content[0].text


def test_a_use_of_a_tool_is_streamed(client: Any, model: str) -> None:
    with client.messages.stream(
        model=model, max_tokens=100, messages=PARIS, tools=[WEATHER], tool_choice={"type": "any"}, extra_body=GREEDY
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1 and "Paris" in final.content[0].input["city"]


def test_tokens_are_counted(client: Any, model: str) -> None:
    count = client.messages.count_tokens(model=model, messages=JAPAN).input_tokens
    assert client.messages.create(model=model, max_tokens=1, messages=JAPAN).usage.input_tokens == count


def test_errors_are_of_the_classes_that_the_client_knows(client: Any, model: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model=model, max_tokens=4, messages=JAPAN, extra_body={"temperature": 9})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", max_tokens=4, messages=JAPAN)
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-wrong").messages.count_tokens(model=model, messages=JAPAN)
