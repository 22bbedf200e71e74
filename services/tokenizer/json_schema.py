"""What of a JSON schema xgrammar passes over without a word: such a schema is refused, rather than not kept to.

Found out by compiling each with xgrammar 0.2.8 and giving it documents that the schema forbids.
"""

from collections.abc import Callable, Iterator, Mapping

import msgspec

_ONE = ("items", "additionalProperties", "propertyNames", "contains", "unevaluatedProperties", "unevaluatedItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_NEVER = (
    "not", "if", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"
)  # fmt: skip
_TYPED = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern",
)  # fmt: skip
_ASSERTIONS = (
    *_TYPED, "enum", "const", "properties", "required", "patternProperties", "additionalProperties", "propertyNames",
    "minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems",
)  # fmt: skip
_FORMATS = (  # that xgrammar keeps to, and then to no pattern
    "date", "time", "date-time", "duration", "ipv4", "ipv6", "uri", "json-pointer", "relative-json-pointer", "uuid",
    "email",
)  # fmt: skip
_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf")
_IS_OF: dict[object, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1,
}


def find_unsupported(schema: object) -> str | None:
    """A sentence about the first part of a schema that could not be kept to; None where all can be."""
    pending: list[tuple[str, object]] = [("#", schema)]
    while pending:
        path, part = pending.pop()
        if not isinstance(part, dict):
            continue
        found = _unsupported_here(part)
        if found is not None:
            return f"the schema's {found} (at {path}) is not supported"
        pending.extend(_parts(path, part))
    return None


def _parts(path: str, schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name in _ONE:
        yield f"{path}/{name}", schema.get(name)
    for name in _LISTS:
        entries = schema.get(name)
        yield from ((f"{path}/{name}/{i}", each) for i, each in enumerate(entries if isinstance(entries, list) else ()))
    for name in _MAPS:
        entries = schema.get(name)
        if isinstance(entries, dict):
            yield from ((f"{path}/{name}/{key}", each) for key, each in entries.items())


def _unsupported_here(schema: Mapping[str, object]) -> str | None:
    for name in _NEVER:
        if name in schema:
            return f'"{name}"'
    kind = schema.get("type")
    if schema.get("uniqueItems") is True:
        return '"uniqueItems"'
    if "multipleOf" in schema and kind != "integer":
        return '"multipleOf" of other than integers'
    if "pattern" in schema and schema.get("format") in _FORMATS:
        return f'"pattern" beside "format" "{schema["format"]}"'
    all_of = schema.get("allOf")
    if isinstance(all_of, list) and len(all_of) > 1:
        return '"allOf" with more than one schema'
    for name in _ALTERNATIVES:
        beside = next((each for each in _ASSERTIONS if name in schema and each in schema), None)
        if beside is not None:
            return f'"{name}" beside "{beside}"'
    if kind is None and not any(name in schema for name in ("enum", "const")):
        untyped = next((name for name in _TYPED if name in schema), None)
        if untyped is not None:
            return f'"{untyped}" without "type"'
    return _unsupported_property(schema) or _unsupported_value(schema)


def _unsupported_value(schema: Mapping[str, object]) -> str | None:
    """Of "enum" and "const" xgrammar takes every value, whatever "type" says beside it."""
    kinds = schema.get("type")
    checks = [_IS_OF.get(kind) for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)]
    if not checks:
        return None
    values = schema.get("enum")
    named = [("enum", value) for value in values] if isinstance(values, list) else []
    named += [("const", schema["const"])] if "const" in schema else []
    for name, value in named:
        if not any(check is None or check(value) for check in checks):
            written = msgspec.json.encode(value).decode()
            return f'"{name}" with {written[:60]}, which is not of "type" {msgspec.json.encode(kinds).decode()}'
    return None


def _unsupported_property(schema: Mapping[str, object]) -> str | None:
    required, properties = schema.get("required"), schema.get("properties", {})
    if isinstance(required, list) and isinstance(properties, dict):
        missing = next((name for name in required if name not in properties), None)
        if missing is not None:
            return f'"required" {missing!r} that "properties" does not describe'
    return None
