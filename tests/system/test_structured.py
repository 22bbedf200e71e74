"""Structured output and tools with the default model: documents that their schemas take, whatever happens meanwhile."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from tests.tools.server import Server, kill, running

MODEL = "SmolLM2-135M-Instruct"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", "Oslo"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 9999},
        "big": {"type": "boolean"},
    },
    "required": ["city", "people", "big"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
ASK = [{"role": "user", "content": "Describe a city."}]
TOOL = {"type": "function", "function": {"name": "note_city", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=400) as client:
        yield client


def chat(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": ASK, "max_tokens": 80, **fields})


def check(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def test_documents_follow_their_schema_streamed_or_not_and_each_by_itself(client: OpenAI) -> None:
    answer = chat(client, response_format=FORM, n=3, temperature=1.5, seed=1)
    for choice in answer.choices:
        check(choice.message.content)
        assert choice.finish_reason == "stop"
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in chat(client, response_format=FORM, n=3, temperature=1.5, seed=1, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert list(pieces.values()) == [choice.message.content for choice in answer.choices]


def test_regular_expressions_choices_and_grammars_are_kept_to(client: OpenAI) -> None:
    def text(**form: object) -> str:
        fields = {"prompt": "x", "max_tokens": 30, "temperature": 1.5, "extra_body": {"structured_outputs": form}}
        return str(client.completions.create(model=MODEL, **fields).choices[0].text)  # type: ignore[call-overload]

    assert re.fullmatch(r"\d{3}-[ab]{4}", text(regex=r"\d{3}-[ab]{4}"))
    assert text(choice=["yes", "no", "perhaps"]) in ("yes", "no", "perhaps")
    assert re.fullmatch(r"(left|right) (left|right)", text(grammar='root ::= way " " way\nway ::= "left" | "right"'))


def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    for tool_choice, reason in (
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "note_city"}}, "tool_calls"),
    ):
        [choice] = chat(client, tools=[TOOL], tool_choice=tool_choice, parallel_tool_calls=False).choices
        assert choice.finish_reason == reason and choice.message.content is None
        assert choice.message.tool_calls[0].function.name == "note_city"
        check(choice.message.tool_calls[0].function.arguments)
    arguments, names = "", []
    for chunk in chat(client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names[:1] == ["note_city"]
    check(arguments)


def test_any_object_will_do_where_there_is_no_schema(client: OpenAI) -> None:
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=120, temperature=0)
    text = answer.choices[0].message.content
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_document_goes_on_in_the_next_executor(server: Server, client: OpenAI) -> None:
    schema = {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 12, "maxItems": 12}
    form = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema}}
    text = ""
    for chunk in chat(client, response_format=form, max_tokens=150, stream=True):
        before, text = text, text + (chunk.choices[0].delta.content or "")
        if len(before) < 20 <= len(text):
            kill(server.services("executor"))
    jsonschema.validate(json.loads(text), schema)


def test_a_grammar_that_cannot_be_is_its_own_requests_error_and_nobody_elses_delay(client: OpenAI) -> None:
    hostile = "(a|aa)+(b|bb)+" * 2000
    refusals: list[str] = []

    def ask_for_it() -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, extra_body={"structured_outputs": {"regex": hostile}})
        refusals.append(caught.value.message)

    thread = threading.Thread(target=ask_for_it)
    thread.start()
    check(chat(client, response_format=FORM).choices[0].message.content)
    thread.join()
    assert len(refusals) == 1 and "structured_outputs: " in refusals[0]
    for form in ({"regex": "(["}, {"grammar": "no grammar"}, {"json": {"not": {}}}):
        with pytest.raises(openai.BadRequestError, match="structured_outputs: "):
            chat(client, extra_body={"structured_outputs": form})
