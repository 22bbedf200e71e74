"""litellm, by its names for OpenAI's and for vLLM's servers."""

import asyncio
import json
import os
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks the network for prices
litellm = pytest.importorskip("litellm", reason="needs litellm: pip install litellm")

pytestmark = pytest.mark.clients

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(params=["openai", "hosted_vllm"])
def options(request: pytest.FixtureRequest, url: str, key: str, model: str) -> dict[str, Any]:
    common = {"api_base": url, "api_key": key, "temperature": 0, "num_retries": 0, "timeout": 300}
    return common | {"model": f"{request.param}/{model}"}


def test_completion(options: dict[str, Any]) -> None:
    answer = litellm.completion(messages=JAPAN, max_tokens=24, **options)
    assert "Tokyo" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_streamed_and_async(options: dict[str, Any]) -> None:
    async def ask() -> str:
        stream = await litellm.acompletion(messages=JAPAN, max_tokens=24, stream=True, **options)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert "Tokyo" in asyncio.run(ask())


def test_a_tool_is_called(options: dict[str, Any]) -> None:
    answer = litellm.completion(
        messages=[{"role": "user", "content": "What is the weather in Paris?"}], tools=[TOOL], tool_choice="required",
        max_tokens=100, **options,
    )  # fmt: skip
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "Paris" in json.loads(call.function.arguments)["city"]


def test_a_schema_is_kept_to(options: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Kyoto", "Tokyo"]}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=JAPAN, response_format=form, max_tokens=60, **options)
    assert json.loads(answer.choices[0].message.content) == {"city": "Tokyo"}


def test_an_error_is_of_the_class_that_it_knows(options: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=JAPAN, **(options | {"temperature": 9}))
