"""The openai package's own examples, against a server with the default model."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest

openai = pytest.importorskip("openai", reason="needs openai: pip install openai")
pydantic = pytest.importorskip("pydantic", reason="needs pydantic: pip install pydantic")

pytestmark = pytest.mark.clients

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PARIS = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


class Step(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # the package may be absent
    explanation: str
    output: str


class Person(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # the package may be absent
    name: str
    age: int
    mood: Literal["happy", "sad"]


@pytest.fixture(scope="module")
def client(url: str, key: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300) as client:
        yield client


def test_chat(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=JAPAN, temperature=0, max_completion_tokens=24)
    assert "Tokyo" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_chat_streamed_by_hand_and_by_the_helper(client: Any, model: str) -> None:
    options = {"model": model, "messages": JAPAN, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    with client.chat.completions.stream(**options) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert text == whole.choices[0].message.content == final.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert "content.delta" in events and events[-1] == "content.done"


def test_completions(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="Monday, Tuesday,", temperature=0, max_tokens=4, echo=True, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.text.startswith("Monday, Tuesday, Wednesday")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(each <= 0 for each in choice.logprobs.token_logprobs[1:])


def test_logprobs_of_a_chat(client: Any, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=JAPAN, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in tokens).decode() == answer.choices[0].message.content
    for each in tokens:
        chances = [math.exp(other.logprob) for other in each.top_logprobs]
        assert chances == sorted(chances, reverse=True) and sum(chances) <= 1 + 1e-6
        assert each.top_logprobs[0].token == each.token, "the likeliest is taken at temperature 0"


def test_eight_chats_at_once(url: str, key: str, model: str) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=300) as client:
            create = client.chat.completions.create
            return await asyncio.gather(
                *(create(model=model, messages=JAPAN, temperature=0, max_tokens=12) for _ in range(8))
            )

    answers = asyncio.run(ask())
    assert len({answer.id for answer in answers}) == 8
    assert all("Tokyo" in answer.choices[0].message.content for answer in answers)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_must_be_called(client: Any, model: str, choice: object) -> None:
    options = {"model": model, "messages": PARIS, "tools": [WEATHER], "tool_choice": choice, "temperature": 0}
    answer = client.chat.completions.create(**options, max_tokens=200)
    [call] = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    arguments = json.loads(call.function.arguments)
    assert "Paris" in arguments["city"] and arguments["unit"] in ("celsius", "fahrenheit")
    with client.chat.completions.stream(**options, max_tokens=200) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments == "".join(deltas)
    assert len(deltas) > 1, "arguments come as they are written"
    assert streamed.finish_reason == answer.choices[0].finish_reason


def test_a_tools_result_goes_back(client: Any, model: str) -> None:
    first = client.chat.completions.create(
        model=model, messages=PARIS, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False,
        temperature=0, max_tokens=200,
    )  # fmt: skip
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and len(message.tool_calls) == 1
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is 21 degrees and sunny."}
    second = client.chat.completions.create(
        model=model, messages=[*PARIS, message, result], temperature=0, max_tokens=40
    )
    assert second.choices[0].message.content


def test_no_tool_is_called_where_none_may_be(client: Any, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=JAPAN, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=24
    )
    assert answer.choices[0].message.tool_calls is None and "Tokyo" in answer.choices[0].message.content


def test_parse_a_person(client: Any, model: str) -> None:
    messages = [{"role": "user", "content": "Tell me about Anna, who is 31 years old and happy, as JSON."}]
    answer = client.chat.completions.parse(
        model=model, messages=messages, response_format=Person, temperature=0, max_tokens=200
    )
    person = answer.choices[0].message.parsed
    assert (person.name, person.age, person.mood) == ("Anna", 31, "happy")


def test_parse_a_tools_arguments(client: Any, model: str) -> None:
    tool = openai.pydantic_function_tool(Step, name="explain")
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Explain 8 + 7."}], tools=[tool], tool_choice="required",
        parallel_tool_calls=False, temperature=0, max_tokens=300,
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Step)


def test_a_json_object(client: Any, model: str) -> None:
    question = 'The capital of Japan as JSON, in the form {"capital": ...}.'
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], response_format={"type": "json_object"},
        temperature=0, max_tokens=40,
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content) == {"capital": "Tokyo"}


def test_what_the_server_adds_goes_through_extra_body(client: Any, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Is the sea wet?"}], max_tokens=10,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "top_k": 5, "return_token_ids": True},
    )  # fmt: skip
    assert answer.choices[0].message.content in ("yes", "no")
    assert answer.choices[0].token_ids


def test_responses(client: Any, model: str) -> None:
    wanted = {"model": model, "input": "What is the capital of Japan?", "temperature": 0, "max_output_tokens": 24}
    first = client.responses.create(**wanted)
    assert "Tokyo" in first.output_text and first.status == "completed"
    with client.responses.stream(**wanted) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == first.output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    second = client.responses.create(**(wanted | {"input": "And of France?"}), previous_response_id=first.id)
    assert "Paris" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_responses_parse_and_call_tools(client: Any, model: str) -> None:
    parsed = client.responses.parse(
        model=model, input="Tell me about Anna, who is 31 years old and happy, as JSON.", text_format=Person,
        temperature=0, max_output_tokens=200,
    )  # fmt: skip
    assert (parsed.output_parsed.name, parsed.output_parsed.age) == ("Anna", 31)
    called = client.responses.create(
        model=model, input=PARIS, tools=[{"type": "function", **WEATHER["function"]}], tool_choice="required",
        temperature=0, max_output_tokens=100,
    )  # fmt: skip
    [call] = [item for item in called.output if item.type == "function_call"]
    assert call.name == "get_weather" and "Paris" in json.loads(call.arguments)["city"]


def test_models(client: Any, model: str) -> None:
    assert [each.id for each in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def test_errors_are_of_the_classes_that_the_client_knows(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model=model, messages=JAPAN, temperature=9)
    assert found.value.param == "temperature" and "temperature" in found.value.message
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=JAPAN)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()
