"""Schemas that xgrammar would not keep to are named; those that it keeps to pass."""

import pytest

from octavo.services.tokenizer.json_schema import find_unsupported


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"not": {"type": "string"}, "if": {"const": {"not": 1}}}},
        {"type": "integer", "multipleOf": 3, "minimum": 1},
        {"$ref": "#/$defs/a", "description": "text", "default": 1, "$defs": {"a": {"enum": [{"not": 1}]}}},
        {"anyOf": [{"type": "string"}, {"type": "null"}], "type": ["string", "null"], "title": "a"},
        {"allOf": [{"$ref": "#/$defs/a"}]},
        {"type": ["string", "null", "integer"], "enum": ["a", None, 3]},
        {"type": "integer", "const": 3.0},
        {"type": "string", "format": "iri", "pattern": "^2"},
        {"type": "number", "enum": [3, 0.5]},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": False},
        {"patternProperties": {"^a": {}}, "properties": {"b": {}}, "required": ["b"]},
    ],
)
def test_what_can_be_kept_to_passes(schema: object) -> None:
    assert find_unsupported(schema) is None


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"not": {}}, '"not" (at #)'),
        ({"properties": {"a": {"items": {"if": {}}}}}, '"if" (at #/properties/a/items)'),
        ({"anyOf": [{}, {"uniqueItems": True}]}, '"uniqueItems" (at #/anyOf/1)'),
        ({"type": "number", "multipleOf": 2}, '"multipleOf" of other than integers (at #)'),
        ({"type": "string", "format": "date", "pattern": "^2"}, '"pattern" beside "format" "date" (at #)'),
        ({"allOf": [{}, {}]}, '"allOf" with more than one schema (at #)'),
        ({"anyOf": [{}], "properties": {}}, '"anyOf" beside "properties" (at #)'),
        ({"$defs": {"a": {"$ref": "#", "maxLength": 3}}}, '"$ref" beside "maxLength" (at #/$defs/a)'),
        ({"type": "object", "enum": ["a", "b"]}, '"enum" with "a", which is not of "type" "object" (at #)'),
        ({"type": "string", "enum": ["a", None]}, '"enum" with null, which is not of "type" "string" (at #)'),
        (
            {"type": ["integer", "null"], "const": True},
            '"const" with true, which is not of "type" ["integer","null"] (at #)',
        ),
        ({"minimum": 3}, '"minimum" without "type" (at #)'),
        (
            {"patternProperties": {"^a": {}}, "required": ["ab"]},
            '"required" \'ab\' that "properties" does not describe (at #)',
        ),
        ({"properties": {"a": {}}, "required": ["b"]}, '"required" \'b\' that "properties" does not describe (at #)'),
    ],
)
def test_what_cannot_be_kept_to_is_named(schema: object, sentence: str) -> None:
    assert find_unsupported(schema) == f"the schema's {sentence} is not supported"
