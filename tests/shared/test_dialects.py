"""What other APIs ask for, as the chats that it stands for; and what of it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.shared.endpoints import BODIES, options_of, read_request
from octavo.shared.errors import InvalidRequest
from octavo.shared.openai import ChatRequest
from octavo.shared.openai_parts import ChatMessage

Fields = dict[str, Any]
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
IMAGE = {"type": "input_image", "image_url": "x"}


def read(endpoint: str, fields: Fields) -> ChatRequest:
    base: Fields = {"input": "Hi"} if endpoint == "responses" else {"messages": [USER], "max_tokens": 9}
    request = read_request(endpoint, json.dumps(base | fields).encode())
    chat = options_of(request)  # type: ignore[arg-type]  # it leads to a completion
    assert isinstance(chat, ChatRequest)
    chat.check()
    return chat


def told(messages: list[ChatMessage]) -> list[tuple[object, ...]]:
    """Role, text, reasoning, calls and the call that is answered, of each message."""
    return [
        (
            message.role,
            message.content if isinstance(message.content, str) or message.content is None
            else [part.text for part in message.content],
            message.reasoning_content,
            [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()],
            (message.tool_call_id, message.name),
        )
        for message in messages
    ]  # fmt: skip


NOBODY = (None, None)


def test_items_of_a_response_are_the_messages_of_a_chat() -> None:
    items: list[Fields] = [
        {"role": "developer", "content": "Obey."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                        {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed",
         "content": [{"type": "output_text", "text": "Look", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"role": "assistant", "content": "Done."},
        {"role": "assistant", "content": "Really."},
        USER,
    ]  # fmt: skip
    chat = read("responses", {"input": items, "instructions": "Be brief."})
    assert told(chat.messages) == [
        ("system", "Be brief.", None, [], NOBODY),
        ("developer", "Obey.", None, [], NOBODY),
        ("user", ["a", "b"], None, [], NOBODY),
        ("assistant", "Look", "hm", [("1", "f", {"a": 1}), ("2", "g", {})], NOBODY),
        ("tool", "two", None, [], ("2", "g")),
        ("tool", "one", None, [], ("1", "f")),
        ("assistant", "Done.", None, [], NOBODY),
        ("assistant", "Really.", None, [], NOBODY),
        ("user", "Hi", None, [], NOBODY),
    ]


def test_blocks_of_messages_are_the_messages_of_a_chat() -> None:
    turns: list[Fields] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Look"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "2", "name": "g", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "two"}]},
            {"type": "tool_result", "tool_use_id": "1", "content": "one", "is_error": True},
            {"type": "tool_result", "tool_use_id": "3"},
            {"type": "text", "text": "And?"}]},
    ]  # fmt: skip
    chat = read("messages", {"messages": turns, "system": [{"type": "text", "text": "Be brief."}]})
    assert told(chat.messages) == [
        ("system", "Be brief.", None, [], NOBODY),
        ("user", ["a", "b"], None, [], NOBODY),
        ("assistant", "Look", "hm", [("1", "f", {"a": 1}), ("2", "g", {})], NOBODY),
        ("tool", "two", None, [], ("2", "g")),
        ("tool", "one", None, [], ("1", "f")),
        ("tool", "", None, [], ("3", None)),
        ("user", "And?", None, [], NOBODY),
    ]


TOOL = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CHAT_TOOL = {"type": "function", "function": {name: value for name, value in TOOL.items() if name != "type"}}
USE = {"name": "f", "description": "d", "input_schema": SCHEMA}
CHAT_USE = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
FORMAT = {"name": "n", "schema": SCHEMA, "strict": True}
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("endpoint", "fields", "same"),
    [
        ("responses", {"max_output_tokens": 7, "min_tokens": 2}, {"max_tokens": 7, "min_tokens": 2}),
        ("responses", {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 4, "stop": "x", "user": "u"}, None),
        ("responses", {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
         {"logprobs": True, "top_logprobs": 3}),
        ("responses", {"top_logprobs": 3}, {}),
        ("responses", {"tools": [TOOL], "tool_choice": "required"}, {"tools": [CHAT_TOOL], "tool_choice": "required"}),
        ("responses", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
         {"tools": [CHAT_TOOL], "tool_choice": NAMED}),
        ("responses", {"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ("responses", {"text": {"format": {"type": "json_schema"} | FORMAT}},
         {"response_format": {"type": "json_schema", "json_schema": FORMAT}}),
        ("responses", {"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ("responses", {"truncation": "auto"}, {"truncate_prompt_tokens": -1}),
        ("responses", {"parallel_tool_calls": False, "cache_salt": "s", "priority": 3}, None),
        ("messages", {"temperature": 0.5, "top_p": 0.5, "top_k": 3}, None),
        ("messages", {"stop_sequences": ["x"], "metadata": {"user_id": "u"}}, {"stop": ["x"], "user": "u"}),
        ("messages", {"tools": [USE], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
         {"tools": [CHAT_USE], "tool_choice": "auto", "parallel_tool_calls": False}),
        ("messages", {"tools": [USE], "tool_choice": {"type": "any"}},
         {"tools": [CHAT_USE], "tool_choice": "required", "parallel_tool_calls": True}),
        ("messages", {"tools": [USE], "tool_choice": {"type": "tool", "name": "f"}},
         {"tools": [CHAT_USE], "tool_choice": NAMED, "parallel_tool_calls": True}),
        ("messages", {"tools": [USE], "tool_choice": {"type": "none"}},
         {"tools": [CHAT_USE], "tool_choice": "none", "parallel_tool_calls": True}),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 5}},
         {"thinking_token_budget": 5, "chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ("messages", {"thinking": {"type": "disabled"}},
         {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ("messages", {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}},
         {"reasoning_effort": "low", "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        ("messages", {"messages": [USER, {"role": "assistant", "content": "So"}]},
         {"messages": [USER, {"role": "assistant", "content": "So"}], "continue_final_message": True}),
    ],
)  # fmt: skip
def test_a_request_stands_for_a_chat(endpoint: str, fields: Fields, same: Fields | None) -> None:
    wanted: Fields = {"messages": [USER], "max_tokens": 9 if endpoint == "messages" else None}
    wanted |= fields if same is None else same
    chat, found = read("chat", wanted), read(endpoint, fields)
    different = {
        name: (getattr(found, name), value)
        for name in ChatRequest.__struct_fields__
        if getattr(found, name) != (value := getattr(chat, name)) and (getattr(found, name) or value)
    }
    assert different == {}


@pytest.mark.parametrize(
    ("endpoint", "fields", "word"),
    [
        ("responses", {"input": []}, "input"),
        ("responses", {"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0]: parts of type"),
        ("responses", {"input": [{"type": "web_search_call"}]}, "input[0].type: 'web_search_call' is not supported"),
        ("responses", {"input": [{"type": "function_call", "call_id": "1"}]}, "input[0].name: this field is required"),
        ("responses", {"input": [{"content": "x"}]}, "input[0].role: this field is required"),
        ("responses", {"tools": [{"type": "web_search"}]}, "tools[0].type: 'web_search' is not supported"),
        ("responses", {"tools": [{"type": "function"}]}, "tools[0].name: this field is required"),
        ("responses", {"tools": [TOOL, TOOL]}, "tools: two of them"),
        ("responses", {"tool_choice": "required"}, "tool_choice: required"),
        ("responses", {"max_output_tokens": 3, "min_tokens": 5}, "max_output_tokens, 3"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ("responses", {"conversation": "c"}, "conversation: not supported"),
        ("responses", {"prompt": {"id": "p"}}, "prompt: not supported"),
        ("responses", {"temperature": 3}, "temperature"),
        ("responses", {"metadata": {"a": "x" * 513}}, "metadata"),
        ("messages", {"messages": []}, "messages"),
        ("messages", {"max_tokens": None}, "max_tokens"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
         "messages[0].content[0].type: 'thinking' is not supported here"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}]}]},
         "messages[0].content[0].content[0].type"),
        ("messages", {"system": [{"type": "document"}]}, "system[0].type"),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ("messages", {"tools": [USE], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ("messages", {"tools": [USE], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: 'g'"),
        ("messages", {"stop_sequences": [""]}, "stop_sequences"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_its_name(endpoint: str, fields: Fields, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(endpoint, fields)
    assert word in caught.value.message
    assert caught.value.param in {*BODIES[endpoint].__struct_fields__, "text.format"}


def test_fields_that_nobody_knows_are_ignored() -> None:
    unknown = {"something": {"deep": [None]}}
    item = USER | unknown | {"content": [{"type": "input_text", "text": "Hi"} | unknown]}
    read("responses", {"input": [item], "service_tier": "auto", "text": {"verbosity": "low"}} | unknown)
    turn = USER | unknown | {"content": [{"type": "text", "text": "Hi"} | unknown]}
    read("messages", {"messages": [turn], "service_tier": "auto"} | unknown)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(endpoint=st.sampled_from(["responses", "messages", "count_tokens"]), data=st.data())
def test_no_field_of_any_kind_breaks_the_reading(endpoint: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(BODIES[endpoint].__struct_fields__), max_size=4))
    base: Fields = {"input": "Hi"} if endpoint == "responses" else {"messages": [USER], "max_tokens": 9}
    body = base | {name: data.draw(_JSON) for name in names}
    try:
        read_request(endpoint, json.dumps(body).encode(errors="surrogatepass"))
    except InvalidRequest as error:
        assert error.message
