"""Text that stands for a value, as JSON of the type that a tool declares for it."""

import json
from collections.abc import Mapping, Sequence

import msgspec

from octavo.services.tokenizer.parsing.python_literal import NUMBER, json_of_literal
from octavo.services.tokenizer.parsing.rules import Schema

_NAMES = {
    "none": ("null", "null"),
    "null": ("null", "null"),
    "true": ("true", "boolean"),
    "false": ("false", "boolean"),
}
_MAX_REFERENCES = 16


def tool_schemas(tools: Sequence[Mapping[str, object]]) -> dict[str, Schema]:
    """The schema of the parameters of each tool, by name; of OpenAI's tool definitions."""
    functions = [function for tool in tools if isinstance(function := tool.get("function", tool), Mapping)]
    return {
        name: schema
        for function in functions
        if isinstance(name := function.get("name"), str) and isinstance(schema := function.get("parameters"), Mapping)
    }


def parameter_types(schema: Schema, name: str) -> frozenset[str]:
    """The JSON types that a parameter may have; none if the schema does not say."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not isinstance(properties.get(name), Mapping):
        return frozenset()
    types: set[str] = set()
    waiting: list[object] = [properties[name]]
    for _ in range(_MAX_REFERENCES):  # schemas come from requests and may refer to themselves
        if not waiting:
            break
        each = waiting.pop()
        if not isinstance(each, Mapping):
            continue
        for key in ("anyOf", "oneOf", "allOf"):
            waiting += each[key] if isinstance(each.get(key), list) else []
        if isinstance(each.get("$ref"), str):
            waiting.append(_resolve(schema, str(each["$ref"])))
        types |= _own_types(each)
    return frozenset(types)


def to_json(text: str, types: frozenset[str]) -> str:
    """The value as JSON: of the first of these types that it can be, else a string.

    Where a number may also be a string it is a number: the text cannot tell.
    """
    bare = text.strip()
    word, word_type = _NAMES.get(bare.lower(), ("", ""))
    if word and word_type in types:
        return word
    if types & {"integer", "number"} and NUMBER.fullmatch(bare):
        return bare
    for type, opening, kind in (("object", "{", dict), ("array", "[", list)):
        if type in types and bare.startswith(opening):
            return bare if _is_json(bare, kind) else json_of_literal(bare) or quote(text)
    return quote(text)


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), kind)
    except RecursionError:
        return False
    except msgspec.DecodeError:
        return False


def _own_types(schema: Schema) -> set[str]:
    match schema.get("type"):
        case str(name):
            return {name}
        case list(names):
            return {name for name in names if isinstance(name, str)}
    if isinstance(schema.get("properties"), Mapping):
        return {"object"}
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return {_TYPES.get(type(value), "string") for value in values} if isinstance(values, list) else set()


def _resolve(schema: Schema, reference: str) -> object:
    """What a reference within the schema ("#/$defs/Name") names."""
    found: object = schema
    for key in reference.split("/")[1:]:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


_TYPES = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}
