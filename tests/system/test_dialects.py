"""The Responses and the Messages API with the real model on the CPU, asked through the clients of both."""

import time
from collections.abc import Iterator

import pytest
from anthropic import Anthropic, BadRequestError
from openai import OpenAI
from openai.types.responses import Response
from tests.tools.server import Server, running, wait_until

MODEL = "SmolLM2-135M-Instruct"
GREEDY = {"extra_body": {"temperature": 0}}  # some versions of Anthropic's client have no field for it
QUESTION = "What is the capital of Japan?"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--dtype", "float32", "--gateways", "2") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=400) as client:
        yield client


@pytest.fixture
def claude(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=400) as client:
        yield client


def create(client: OpenAI, text: str = QUESTION, **fields: object) -> Response:
    wanted = {"model": MODEL, "temperature": 0, "max_output_tokens": 24} | fields
    made = client.responses.create(input=text, **wanted)  # type: ignore[call-overload]  # fields of any kind
    assert isinstance(made, Response)
    return made


def test_a_response_is_the_same_streamed_and_not(client: OpenAI) -> None:
    whole = create(client)
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
    )
    assert "Tokyo" in whole.output_text and whole.output_text == chat.choices[0].message.content
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert (final.output_text, final.status) == (whole.output_text, whole.status)
    assert final.usage == whole.usage and final.usage is not None and chat.usage is not None
    assert final.usage.input_tokens == chat.usage.prompt_tokens


def test_a_conversation_goes_on_where_it_was(client: OpenAI) -> None:
    first = create(client)
    second = create(client, "And of Italy?", previous_response_id=first.id)
    whole = client.chat.completions.create(
        model=MODEL, temperature=0, max_tokens=24,
        messages=[
            {"role": "user", "content": QUESTION}, {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And of Italy?"},
        ],
    )  # fmt: skip
    assert second.output_text == whole.choices[0].message.content
    listed = client.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in listed] == ["message"] * 3


def test_a_question_that_comes_while_a_model_is_loaded_again_is_answered(server: Server, client: OpenAI) -> None:
    wanted = create(client).output_text
    server.services("executor")[0].kill()
    wait_until(lambda: not server.is_ready, "its death is noticed")
    assert create(client).output_text == wanted


def test_a_response_outlives_the_gateway_that_made_it(server: Server, client: OpenAI) -> None:
    made = create(client, max_output_tokens=4)
    assert made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens"
    before = server.services("gateway")
    for gateway in before:
        gateway.kill()
    wait_until(lambda: len({*server.services("gateway")} - {*before}) == 2, "the gateways are back")
    wait_until(lambda: server.is_ready, "they serve")
    assert client.responses.retrieve(made.id) == made
    client.responses.delete(made.id)
    with pytest.raises(Exception, match="there is no response"):
        client.responses.retrieve(made.id)


def test_a_response_in_the_background_ends_or_is_cancelled(client: OpenAI) -> None:
    begun = create(client, background=True, max_output_tokens=4)
    assert begun.status == "queued"
    deadline = time.monotonic() + 90
    while (ended := client.responses.retrieve(begun.id)).status == "in_progress" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.status == "incomplete" and ended.output_text
    long = create(client, "Tell a very long story.", background=True, max_output_tokens=4000)
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


def test_no_event_is_lost_with_a_tokenizer(server: Server, client: OpenAI) -> None:
    wanted = {"max_output_tokens": 50, "extra_body": {"ignore_eos": True}}
    whole = create(client, "Tell a long story.", **wanted)
    events = []
    with client.responses.create(
        model=MODEL, input="Tell a long story.", temperature=0, stream=True, **wanted  # type: ignore[arg-type]
    ) as stream:  # fmt: skip
        for event in stream:
            events.append(event)
            if len(events) == 20:
                server.services("tokenizer")[0].kill()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


def test_a_response_tells_logprobs(client: OpenAI) -> None:
    made = create(client, max_output_tokens=3, include=["message.output_text.logprobs"], top_logprobs=2)
    part = made.output[0].content[0]  # type: ignore[union-attr]  # it is a message
    assert part.type == "output_text" and part.logprobs is not None
    assert "".join(each.token for each in part.logprobs) == made.output_text
    assert [len(each.top_logprobs) for each in part.logprobs] == [2] * 3


def test_a_message_is_the_same_streamed_and_not(claude: Anthropic, client: OpenAI) -> None:
    fields = {"model": MODEL, "max_tokens": 24, "messages": [{"role": "user", "content": QUESTION}]} | GREEDY
    whole = claude.messages.create(**fields)  # type: ignore[call-overload]  # the fields are of the right kinds
    with claude.messages.stream(**fields) as stream:  # type: ignore[arg-type]
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "Tokyo" in whole.content[0].text and "".join(pieces) == whole.content[0].text
    assert final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)
    count = claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": QUESTION}])
    assert count.input_tokens == whole.usage.input_tokens
    assert whole.usage.output_tokens <= 24


def test_a_message_that_is_begun_is_gone_on_with(claude: Anthropic) -> None:
    answer = claude.messages.create(
        model=MODEL, max_tokens=1, extra_body=GREEDY["extra_body"],
        messages=[
            {"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital of Japan is"},
        ],
    )  # fmt: skip
    assert answer.content[0].type == "text" and answer.content[0].text.startswith(" Tokyo")
    assert answer.stop_reason == "max_tokens"


def test_a_wrong_message_is_refused_in_the_clients_own_words(claude: Anthropic) -> None:
    with pytest.raises(BadRequestError, match="temperature"):
        claude.messages.create(
            model=MODEL, max_tokens=4, extra_body={"temperature": 3}, messages=[{"role": "user", "content": QUESTION}]
        )
