"""LangChain's ChatOpenAI: invoke, stream, structured output and tools."""

import asyncio
import json
from typing import Any, Literal

import pytest

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="needs langchain-openai: pip install langchain-openai"
)
pydantic = pytest.importorskip("pydantic", reason="needs pydantic: pip install pydantic")

pytestmark = pytest.mark.clients

JAPAN = "What is the capital of Japan?"


class Person(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # the package may be absent
    """A person."""

    name: str
    age: int
    mood: Literal["happy", "sad"]


def get_weather(city: str) -> str:
    """The weather in a city now."""
    return f"It is sunny in {city}."


@pytest.fixture(scope="module")
def chat(url: str, key: str, model: str) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=url, api_key=key, model=model, temperature=0, max_tokens=200, max_retries=0, timeout=300
    )


def test_invoke(chat: Any, model: str) -> None:
    answer = chat.invoke([("system", "Answer in one sentence."), ("human", JAPAN)])
    assert "Tokyo" in answer.content
    assert answer.response_metadata["model_name"] == model
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: Any) -> None:
    chunks = list(chat.stream(JAPAN))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert len(chunks) > 3 and whole.content == chat.invoke(JAPAN).content
    assert whole.response_metadata["finish_reason"] == "stop"


def test_batch_and_async(chat: Any) -> None:
    answers = chat.batch([JAPAN, "What is the capital of France?"])
    assert "Tokyo" in answers[0].content and "Paris" in answers[1].content
    assert asyncio.run(chat.ainvoke(JAPAN)).content == answers[0].content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    person = chat.with_structured_output(Person, method=method).invoke(
        "Tell me about Anna, who is 31 years old and happy."
    )
    assert (person.name, person.age, person.mood) == ("Anna", 31, "happy")


def test_a_bound_tool_is_called_and_its_result_goes_back(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    question = HumanMessage("What is the weather in Paris?")
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke([question])
    call = answer.tool_calls[0]
    assert call["name"] == "get_weather" and "Paris" in call["args"]["city"]
    result = ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])
    assert chat.invoke([question, answer, result]).content


def test_a_bound_tools_call_is_streamed(chat: Any) -> None:
    chunks = list(chat.bind_tools([get_weather], tool_choice="get_weather").stream("What is the weather in Paris?"))
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert pieces[0]["name"] == "get_weather"
    assert "Paris" in json.loads("".join(piece["args"] or "" for piece in pieces))["city"]
