"""Holds answers to what /openapi.json says of them, to the field: what it does not name is an error too."""

import json
from typing import Any

import jsonschema


class Document:
    """An OpenAPI document, read strictly."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._schemas = {name: _closed(schema) for name, schema in document["components"]["schemas"].items()}

    def check_answer(self, method: str, path: str, status: int, media_type: str, body: bytes) -> None:
        """Raises AssertionError or jsonschema.ValidationError where an answer is not as the document says.

        Args:
            method: of the request.
            path: of the document, with its variables' names.
            status: of the answer.
            media_type: without parameters.
            body: of the answer; of a stream all its events.
        """
        responses = self.document["paths"][path][method.lower()]["responses"]
        content = responses[str(status)]["content"]
        assert media_type in content, f"{method} {path} answers {status} as {media_type}"
        if media_type == "application/json":
            self.check(content[media_type]["schema"], json.loads(body))
        elif media_type == "text/event-stream":
            data = content[media_type]["schema"]["properties"]["data"]
            *last, shape = data.get("anyOf", [data])
            *found, end = events(body)
            for event in found if last else [*found, end]:
                self.check(shape["contentSchema"], json.loads(event))
            assert not last or end == last[0]["const"], "the stream has another end"

    def check(self, schema: dict[str, Any], value: object) -> None:
        """Raises jsonschema.ValidationError if a value is not of the schema, or has a field that it does not name."""
        whole = {**schema, "components": {"schemas": self._schemas}}
        jsonschema.Draft202012Validator(whole).validate(value)

    def schema(self, name: str) -> dict[str, Any]:
        return {"$ref": f"#/components/schemas/{name}"}


def events(stream: bytes) -> list[str]:
    """The data of each event."""
    return [line[6:] for line in stream.decode().split("\n") if line.startswith("data: ")]


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False} if "properties" in schema else schema
