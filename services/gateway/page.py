"""The documentation page, made of the OpenAPI document: one file without scripts that needs nothing from elsewhere."""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5c6470; --back: #fff; --panel: #f5f6f8; --line: #dfe2e7;
  --mark: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #9aa3af; --back: #14171c; --panel: #1c2027;
  --line: #30353e; --mark: #6db1ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
nav { position: fixed; inset: 0 auto 0 0; width: 17rem; overflow: auto; padding: 1.5rem; background: var(--panel);
  border-right: 1px solid var(--line); }
nav a { display: block; padding: .1rem 0; color: var(--ink); text-decoration: none; overflow-wrap: anywhere; }
nav a:hover { color: var(--mark); }
nav strong { display: block; margin: 1rem 0 .2rem; color: var(--soft); font-size: .8rem; text-transform: uppercase;
  letter-spacing: .05em; }
main { margin-left: 17rem; padding: 1.5rem 2.5rem 6rem; max-width: 64rem; }
h1 { margin: 0; font-size: 1.7rem; } h1 small { color: var(--soft); font-size: .9rem; font-weight: normal; }
h2 { margin: 3rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.5rem 0 .4rem; font-size: 1rem; }
code, pre { font: .87em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
h2 code { font-size: .95rem; } .method { color: var(--mark); font-weight: 600; }
pre { margin: .5rem 0; padding: .8rem 1rem; overflow-x: auto; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; user-select: all; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td:first-child { white-space: nowrap; }
td.kind { color: var(--soft); max-width: 20rem; overflow-wrap: anywhere; }
a { color: var(--mark); } .soft { color: var(--soft); } .must { color: var(--mark); font-size: .8rem; }
@media (max-width: 60rem) { nav { position: static; width: auto; border: 0; } main { margin: 0; padding: 1.5rem; } }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may use its own style, and nothing else at all."""

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
}

Json = dict[str, Any]


def render(document: Json) -> str:
    """The page of a document that `openapi.describe` made."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    title, version = html.escape(document["info"]["title"]), html.escape(document["info"]["version"])
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} {version}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
        f"<nav>{''.join(_links(operations, schemas))}</nav><main><h1>{title} <small>{version}</small></h1>",
        f"<p>{_text(document['info']['description'])}</p>",
        '<p class="soft">The same for programs: <a href="openapi.json">openapi.json</a>. A click on an example ',
        "selects it.</p>",
        *(part for operation in operations for part in _operation(*operation)),
        *(part for name, schema in schemas.items() for part in _schema(name, schema)),
        "</main></html>",
    ]
    return "".join(parts)


def _links(operations: Sequence[tuple[str, str, Json]], schemas: Json) -> Iterator[str]:
    group = ""
    for _, path, operation in operations:
        if operation["tags"][0] != group:
            group = operation["tags"][0]
            yield f"<strong>{html.escape(group)}</strong>"
        yield f'<a href="#{operation["operationId"]}">{html.escape(path)}</a>'
    yield "<strong>Shapes</strong>"
    for name in schemas:
        yield f'<a href="#{name}">{html.escape(name)}</a>'


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    name = f'<span class="method">{method}</span> <code>{html.escape(path)}</code>'
    yield f'<h2 id="{operation["operationId"]}">{name}</h2><p>{_text(operation["summary"])}. '
    yield f"{_text(operation.get('description', ''))}"
    yield "" if operation["security"] else " Needs no API key."
    yield f"</p><pre>{html.escape(_curl(method, path, operation))}</pre>"
    variables = [each for each in operation["parameters"] if each.get("in") == "path"]
    if variables:
        yield "<table>"
        for each in variables:
            yield f"<tr><td><code>{html.escape(each['name'])}</code><td>{_text(each['description'])}"
        yield "</table>"
    if "requestBody" in operation:
        yield f"<h3>Takes</h3>{_kind(operation['requestBody']['content']['application/json']['schema'])}"
    yield "<h3>Answers</h3><table>"
    for status, response in operation["responses"].items():
        yield f"<tr><td>{status}<td>{_text(response['description'])}<td class=kind>"
        yield "<br>".join(_media(kind, media) for kind, media in response["content"].items())
    yield "</table>"


def _media(kind: str, media: Json) -> str:
    schema = media["schema"]
    if kind == "text/event-stream":
        data = schema["properties"]["data"]
        schema = data.get("anyOf", [data])[-1]["contentSchema"]
    shape = _kind(schema)
    return shape if kind == "application/json" else f"{html.escape(kind)}: {shape}"


def _curl(method: str, path: str, operation: Json) -> str:
    """A command that runs as it is against a server on its default port."""
    command = f"curl http://127.0.0.1:8000{path}"
    if method != "GET":
        command = f"curl -X {method} http://127.0.0.1:8000{path}"
    if operation["security"]:
        command += ' \\\n  -H "Authorization: Bearer $OCTAVO_API_KEY"'
    if "requestBody" in operation:
        example = operation["requestBody"]["content"]["application/json"].get("example", {})
        body = json.dumps(example, indent=2, ensure_ascii=False).replace("'", "'\\''")
        command = command.replace(f"-X {method} ", "")
        command += f" \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    return command


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<h2 id="{name}"><code>{html.escape(name)}</code></h2><p>{_text(schema.get("description", ""))}</p>'
    if "properties" not in schema:
        yield f"<p>{_kind(schema)}</p>"
        return
    yield "<table><tr><th>Field<th>Type<th>Default<th>Meaning"
    for field, what in schema["properties"].items():
        must = ' <span class="must">required</span>' if field in schema.get("required", ()) else ""
        default = json.dumps(what["default"]) if what.get("default") is not None else ""
        yield f"<tr><td><code>{html.escape(field)}</code>{must}<td class=kind>{_kind(what)}"
        yield f"<td><code>{html.escape(default)}</code><td>{_text(_meaning(what))}"
    yield "</table>"


def _meaning(schema: Json) -> str:
    found = [each["description"] for each in (schema, *schema.get("anyOf", ())) if "description" in each]
    return found[0] if found else ""


def _kind(schema: Json) -> str:
    """A type with its bounds, in words; names of shapes are links."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return html.escape(", ".join(json.dumps(each) for each in schema.get("enum", [schema.get("const")])))
    kind = html.escape(str(schema.get("type", "anything")))
    if "items" in schema:
        kind = f"array of {_kind(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(schema['additionalProperties'])}"
    bounds = [words.format(schema[word]) for word, words in _BOUNDS.items() if word in schema]
    return ", ".join([kind, *map(html.escape, bounds)])


def _text(text: str) -> str:
    """Plain text in which `code` is code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
