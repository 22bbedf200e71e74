"""The OpenAPI 3.1 document of a table of routes, made of the Structs that validate what comes in."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

import octavo
from octavo.services.gateway.auth import OPEN_ROUTES
from octavo.services.gateway.meanings import MEANINGS
from octavo.services.gateway.route import Route, Shape
from octavo.shared.openai_answers import ErrorAnswer

Json = dict[str, Any]

ALWAYS_ERRORS = (400, 415, 500)
STATUSES = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or one that is not known here.",
    404: "There is no such model, response or path.",
    413: "The body is larger than --max-body-mib.",
    415: "The body has a Content-Encoding.",
    429: "Too many requests wait; Retry-After says when to come back.",
    500: "The server failed on this request.",
    503: "Not ready, or about to end; Retry-After says when to come back.",
}
TEXT = """\
An LLM serving engine with the API of OpenAI. Fields that are not named here are ignored. Every answer carries an \
`X-Request-Id`: the client's own, if it sends a harmless one."""
EVENTS = "Server-sent events: the data of each is JSON. Lines that begin with a colon keep the connection open."
LAST_EVENT = "The data of the last is `{}`, unless it tells of an error."
KEYS: list[Json] = [{"bearer": []}, {"header": []}]
"""Each is enough by itself."""
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send it."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "As Anthropic's clients send it."},
}
LABEL_TEXT = "A name for the request, of 1 to 64 of `A-Za-z0-9_-`; another one is not used."
ERROR_EXAMPLE = {
    "error": {
        "message": "temperature: expected `float` <= 2.0",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }
}


def describe(routes: Sequence[Route]) -> Json:
    """The document. Routes whose Structs are named alike share their schema."""
    told = ((route.body, route.answer, route.events, route.failure) for route in routes)
    shapes = [ErrorAnswer, *(shape for each in told for shape in each if shape)]
    refs, schemas = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    ref_of = {id(shape): ref for shape, ref in zip(shapes, refs, strict=True)}
    bodies = [route.body for route in routes if route.body is not None]
    taken = msgspec.json.schema_components(bodies)[1]
    for name, schema in schemas.items():
        if name in taken:
            _add_meanings(schema)
        else:
            _require_defaults(schema)
    paths: dict[str, Json] = {}
    for route in routes:
        operation = _Operation(route, ref_of)
        paths.setdefault(operation.path, {})[route.method.lower()] = operation.describe()
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": TEXT},
        "tags": [{"name": name} for name in dict.fromkeys(route.group for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": SCHEMES,
            "headers": {
                "X-Request-Id": {"schema": {"type": "string"}, "required": True},
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."},
            },
            "parameters": {
                "X-Request-Id": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": LABEL_TEXT,
                    "schema": {"type": "string"},
                }
            },
        },
    }


class _Operation:
    """One route in the document's terms."""

    def __init__(self, route: Route, ref_of: dict[int, Json]) -> None:
        self._route = route
        self._ref_of = ref_of
        self.path = re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.path)
        self._is_open = self.path in OPEN_ROUTES
        self._failure = route.failure or ErrorAnswer

    def describe(self) -> Json:
        route = self._route
        parameters: list[Json] = [{"$ref": "#/components/parameters/X-Request-Id"}]
        for name, text in route.variables.items():
            schema = {"type": "string", "minLength": 1}
            parameters.append({"name": name, "in": "path", "required": True, "description": text, "schema": schema})
        operation: Json = {
            "tags": [route.group],
            "summary": route.summary,
            "operationId": route.method.lower() + re.sub(r"\W+", "_", self.path).rstrip("_"),
            "parameters": parameters,
            "responses": self._responses(),
            "security": [] if self._is_open else KEYS,
        }
        if route.text:
            operation["description"] = route.text
        if route.body is not None:
            media: Json = {"schema": self._ref(route.body)}
            if route.example is not None:
                media["example"] = dict(route.example)
            operation["requestBody"] = {"required": True, "content": {"application/json": media}}
        return operation

    def _responses(self) -> Json:
        route = self._route
        kind = "object" if route.media_type == "application/json" else "string"
        content: Json = {route.media_type: {"schema": self._ref(route.answer) if route.answer else {"type": kind}}}
        if route.events is not None:
            content["text/event-stream"] = {"schema": self._event(route.events, route.last_event)}
        text = "Done."
        if route.events is not None:
            text = f"{text} {EVENTS}"
        if route.last_event is not None:
            text = f"{text} {LAST_EVENT.format(route.last_event)}"
        responses: Json = {"200": {"description": text, "headers": _headers(), "content": content}}
        errors = {*ALWAYS_ERRORS, *route.errors, *(() if self._is_open else (401,))}
        for status in sorted(errors):
            responses[str(status)] = self._error(STATUSES[status], status in (429, 503))
        responses["default"] = self._error("Any other error.", False)
        return responses

    def _event(self, shape: Shape, last: str | None) -> Json:
        """One event, as OpenAPI 3.2 has it under itemSchema, which 3.1 does not know."""
        data: Json = {"contentMediaType": "application/json", "contentSchema": self._either(shape, self._failure)}
        choice = data if last is None else {"anyOf": [{"const": last}, data]}
        return {"type": "object", "properties": {"data": {"type": "string", **choice}}, "required": ["data"]}

    def _either(self, *shapes: Shape) -> Json:
        return {"anyOf": [self._ref(shape) for shape in shapes]}

    def _error(self, text: str, has_retry: bool) -> Json:
        media: Json = {"schema": self._ref(self._failure)}
        if self._failure is ErrorAnswer:
            media["example"] = ERROR_EXAMPLE
        headers = _headers("Retry-After") if has_retry else _headers()
        return {"description": text, "headers": headers, "content": {"application/json": media}}

    def _ref(self, shape: Shape) -> Json:
        return self._ref_of[id(shape)]


def _headers(*others: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *others)}


def _add_meanings(schema: Json) -> None:
    """Describe the fields whose Struct does not."""
    for name, field in schema.get("properties", {}).items():
        options = [field, *field.get("anyOf", ())]
        if name in MEANINGS and not any("description" in each for each in options):
            field["description"] = MEANINGS[name]


def _require_defaults(schema: Json) -> None:
    """What we answer has every field, those with a default too."""
    for name, field in schema.get("properties", {}).items():
        if "default" in field:
            del field["default"]
            schema["required"].append(name)
