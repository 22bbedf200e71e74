"""Which grammar a request's completions must follow: of its answer's form, or of the tools that it must call."""

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.services.tokenizer.leads import HarmonyLead, Lead
from octavo.shared.errors import InvalidRequest
from octavo.shared.grammar import MAX_CHOICES, GrammarSpec, json_text
from octavo.shared.openai import ChatRequest, Options
from octavo.shared.openai_parts import FunctionSpec, NamedTool, ResponseFormat, StructuredOutputs

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_ANY_DOCUMENT = GrammarSpec("json_schema", json_text(_ANY_OBJECT), any_whitespace=False, strict=False)


def wanted_grammar(options: Options, lead: Lead | None) -> tuple[GrammarSpec, str] | None:
    """The grammar, and the request's field that asks for it; None where text is free.

    lead: what the completion may begin with, which is free.
    Raises InvalidRequest.
    """
    functions = _to_be_called(options)
    if functions and isinstance(lead, HarmonyLead):
        calls = lead.calling({each.name: each.parameters or _ANY_OBJECT for each in functions})
        return GrammarSpec("structural_tag", json_text({"type": "structural_tag", "format": calls})), "tools"
    found = (_of_calls(options, functions), "tools") if functions else _of_form(options)
    if found is None or lead is None or found[0].kind == "structural_tag":  # which says itself what is free
        return found
    return msgspec.structs.replace(found[0], lead=json_text(lead.format)), found[1]


def _to_be_called(options: Options) -> list[FunctionSpec]:
    """The functions of which one must be called; none where none must."""
    if not isinstance(options, ChatRequest) or not options.tools:
        return []
    functions = [tool.function for tool in options.tools]
    choice = options.tool_choice
    if isinstance(choice, NamedTool):
        return [each for each in functions if each.name == choice.function.name]
    return functions if choice == "required" else []


def _of_calls(options: Options, functions: Sequence[FunctionSpec]) -> GrammarSpec:
    """Calls as the parser "json" reads them; of a named function the arguments alone."""
    assert isinstance(options, ChatRequest), "others have no tools"
    if isinstance(options.tool_choice, NamedTool):
        return _of_schema(functions[0].parameters or _ANY_OBJECT)
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_of(function) for function in functions]},
    }
    if options.parallel_tool_calls is False:
        schema["maxItems"] = 1
    for name in ("$defs", "definitions"):
        shared = {
            key: each for function in functions for key, each in (function.parameters or {}).get(name, {}).items()
        }
        if shared:
            schema[name] = shared
    return _of_schema(schema)


def _call_of(function: FunctionSpec) -> dict[str, Any]:
    """The schema of a call as the parser "json" reads it. What it refers to lies at the root."""
    parameters = {key: each for key, each in (function.parameters or _ANY_OBJECT).items() if key[-4:] != "defs"}
    parameters.pop("definitions", None)
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _of_form(options: Options) -> tuple[GrammarSpec, str] | None:
    if options.structured_outputs is not None:
        return _of_structured_outputs(options.structured_outputs), "structured_outputs"
    form = options.response_format
    if form is None or form.type == "text":
        return None
    return _of_response_format(form), "response_format"


def _of_response_format(form: ResponseFormat) -> GrammarSpec:
    if form.type == "json_object":
        return _ANY_DOCUMENT
    if form.type == "json_schema":
        assert form.json_schema is not None, "it has been checked"
        strict = form.json_schema.strict is not False
        return _of_schema(form.json_schema.schema, strict)
    if form.format is not None:
        return GrammarSpec("structural_tag", json_text({"type": "structural_tag", "format": form.format}))
    old = {"type": "structural_tag", "structures": form.structures, "triggers": form.triggers or []}
    return GrammarSpec("structural_tag", json_text(old))


def _of_structured_outputs(wanted: StructuredOutputs) -> GrammarSpec:
    if wanted.json is not None:
        return _of_schema(wanted.json)
    if wanted.regex is not None:
        return GrammarSpec("regex", wanted.regex)
    if wanted.choice is not None:
        if len(wanted.choice) > MAX_CHOICES:
            raise InvalidRequest(
                f"structured_outputs.choice: {len(wanted.choice)} choices; at most {MAX_CHOICES} are taken",
                "structured_outputs",
            )
        return GrammarSpec("choice", json_text(wanted.choice))
    if wanted.grammar is not None:
        return GrammarSpec("ebnf", wanted.grammar)
    if wanted.structural_tag is not None:
        tag = wanted.structural_tag
        return GrammarSpec("structural_tag", tag if isinstance(tag, str) else json_text(tag))
    return _ANY_DOCUMENT


def _of_schema(schema: object, strict: bool = True) -> GrammarSpec:
    """White space is one space behind commas and colons: where any is allowed, models lose themselves in it."""
    text = schema if isinstance(schema, str) else json_text(schema)
    return GrammarSpec("json_schema", text, any_whitespace=False, strict=strict)
