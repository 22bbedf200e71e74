"""Which grammar a request's completions must follow; each is compiled and tried by xgrammar elsewhere."""

import json

import jsonschema
import pytest
from tests.tokenizer.test_prompts import chat, completion

from octavo.services.tokenizer.wanted_grammar import wanted_grammar
from octavo.shared.errors import InvalidRequest
from octavo.shared.grammar import GrammarSpec
from octavo.shared.openai import Options

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": CITY}},
    {"type": "function", "function": {"name": "stop"}},
]


def wanted(options: Options) -> GrammarSpec | None:
    found = wanted_grammar(options, None)
    return None if found is None else found[0]


def test_text_is_free_unless_a_form_is_asked_for() -> None:
    for options in (completion(), chat(response_format={"type": "text"}), chat(tools=TOOLS)):
        assert wanted(options) is None


def test_the_forms_of_openai_and_of_vllm() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = wanted(chat(response_format=form))
    assert found is not None and found.kind == "json_schema"
    assert list(json.loads(found.value)["properties"]) == ["b", "a"], "properties come in the order of the schema"
    assert wanted(completion(structured_outputs={"regex": "a+"})) == GrammarSpec("regex", "a+")
    assert wanted(completion(structured_outputs={"choice": ["a", "b"]})) == GrammarSpec("choice", '["a","b"]')
    assert wanted(completion(structured_outputs={"grammar": "root ::= [a]"})) == GrammarSpec("ebnf", "root ::= [a]")
    free = wanted(completion(structured_outputs={"json_object": True}))
    assert free == wanted(completion(response_format={"type": "json_object"}))
    assert free is not None and json.loads(free.value) == {"type": "object"} and not free.strict


def test_the_field_that_asks_is_named() -> None:
    named = {"type": "function", "function": {"name": "stop"}}
    fields = ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}})
    found = [wanted_grammar(chat(**each), None) for each in fields]
    found.append(wanted_grammar(chat(tools=TOOLS, tool_choice=named), None))
    assert [each[1] for each in found if each] == ["response_format", "structured_outputs", "tools"]


def test_a_call_that_must_come_is_one_of_the_tools_with_its_arguments() -> None:
    found = wanted(chat(tools=TOOLS, tool_choice="required"))
    assert found is not None and found.kind == "json_schema"
    schema = jsonschema.Draft202012Validator(json.loads(found.value))
    assert schema.is_valid([{"name": "find", "parameters": {"city": "Rome"}}, {"name": "stop", "parameters": {}}])
    assert not schema.is_valid([{"name": "find", "parameters": {"city": 5}}])
    assert not schema.is_valid([{"name": "other", "parameters": {}}])
    assert not schema.is_valid([])
    single = wanted(chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False))
    assert single is not None
    twice = [{"name": "stop", "parameters": {}}] * 2
    assert not jsonschema.Draft202012Validator(json.loads(single.value)).is_valid(twice)


def test_too_many_choices_are_refused_with_the_bound() -> None:
    with pytest.raises(InvalidRequest, match="10001 choices; at most 10000 are taken"):
        wanted(completion(structured_outputs={"choice": ["a"] * 10_001}))
