"""Documents under real JSON schemas: what a running server refuses, breaks off, and gets right or wrong.

    octavo serve &
    python -m benchmarks.json_schemas schemas.jsonl --sample 150

The file has a JSON object a line with a schema under "schema", such as the sets of JSONSchemaBench have. Each schema
is a request of its own; each document is checked with jsonschema against the dialect that its schema names, formats
left out. A JSON line for each schema goes to --out: its reason, and an invalid document as it is.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from jsonschema import validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from octavo.shared.config import key_to_send

SHOWN_CHARS = 1200  # of a schema, in the prompt
CLOSING = ('"', "]", "}", '"]', '"}', "]}", "}}", '"]}', '"}}', '"}]', "}]", "]]")
_PLACE = re.compile(r" \(at #.*\)")
_SLOW = re.compile(r"took longer than|too slow to follow|takes more than|too much for|too many|bytes are kept")


@dataclass(frozen=True)
class Outcome:
    """What came of one schema."""

    name: str
    kind: str
    """valid, invalid, broke off (at max_tokens), refused, too slow, no schema, failed."""
    reason: str = ""
    num_tokens: int = 0
    seconds: float = 0.0
    document: str = ""
    """Where it is not valid."""


async def main() -> int:
    options = _parser().parse_args()
    lines = [json.loads(line) for line in options.schemas.read_text().splitlines()]
    if options.sample:
        lines = random.Random(options.seed).sample(lines, min(options.sample, len(lines)))
    gate = asyncio.Semaphore(options.concurrency)
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    key = key_to_send()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    began = time.perf_counter()
    async with aiohttp.ClientSession(options.url, timeout=timeout, headers=headers) as session:
        if options.closing_bias:
            options.body = {"logit_bias": await _bias(session, options.closing_bias)} | options.body
        outcomes = await asyncio.gather(*(_ask(session, gate, line, options) for line in lines))
    _show(outcomes, time.perf_counter() - began)
    if options.out:
        with options.out.open("a") as file:
            file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
    return 1 if any(outcome.kind in ("invalid", "failed") for outcome in outcomes) else 0


async def _bias(session: aiohttp.ClientSession, bias: float) -> dict[str, float]:
    """For the tokens that do nothing but end strings, and half of it for those that end arrays and objects."""
    found = {}
    for text in CLOSING:
        async with session.post("/tokenize", json={"prompt": text, "add_special_tokens": False}) as answer:
            answer.raise_for_status()
            token_ids = (await answer.json())["tokens"]
        if len(token_ids) == 1:
            found[str(token_ids[0])] = bias if text.startswith('"') else bias / 2
    return found


async def _ask(
    session: aiohttp.ClientSession, gate: asyncio.Semaphore, line: dict[str, object], options: argparse.Namespace
) -> Outcome:
    name, schema = f"{line.get('set', '')}/{line.get('name', '')}", line["schema"]
    shown = json.dumps(schema)[:SHOWN_CHARS]
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": f"Write a short JSON document for this schema:\n{shown}"}],
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    body |= options.body
    if options.whitespace == "none":
        body["structured_outputs"] = {"json": schema, "disable_any_whitespace": True}
    elif options.whitespace == "any":
        body["structured_outputs"] = {"json": schema}
    else:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "document", "schema": schema}}
    async with gate:
        began = time.perf_counter()
        try:
            async with session.post("/v1/chat/completions", json=body) as answer:
                status, content = answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Outcome(name, "failed", f"{type(error).__name__}: {error}", seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    if status != 200:
        message = str(content["error"]["message"])
        kind = "failed" if status >= 500 else "too slow" if _SLOW.search(message) else "refused"
        return Outcome(name, kind, f"{status} {_PLACE.sub('', message)}", seconds=seconds)
    choice, num_tokens = content["choices"][0], content["usage"]["completion_tokens"]
    document = choice["message"]["content"] or ""
    kind, reason = _judge(schema, document, choice["finish_reason"])
    return Outcome(name, kind, reason, num_tokens, seconds, "" if kind == "valid" else document)


def _judge(schema: object, document: str, finish_reason: str) -> tuple[str, str]:
    """The kind of outcome that a document is, and why."""
    if finish_reason == "length":
        wasted = len(document) - len(re.sub(r"\s{3,}", " ", document))
        return "broke off", "mostly white space" if wasted > len(document) / 2 else "long"
    try:
        validator = validators.validator_for(schema)
        validator.check_schema(schema)
        validator(schema, registry=Registry()).validate(json.loads(document))
    except (SchemaError, Unresolvable, re.error) as error:
        return "no schema", type(error).__name__
    except ValueError as error:
        return "invalid", f"no JSON: {error}"
    except ValidationError as error:
        return "invalid", f"{error.validator}: {error.message[:200]}"
    return "valid", ""


def _show(outcomes: Sequence[Outcome], took_s: float) -> None:
    kinds = Counter(outcome.kind for outcome in outcomes)
    num_tokens = sum(outcome.num_tokens for outcome in outcomes)
    print(f"{len(outcomes)} schemas in {took_s:.1f} s, {num_tokens} tokens, {num_tokens / took_s:.0f}/s")
    for kind, count in kinds.most_common():
        print(f"{kind:<12}{count:>6}{count / len(outcomes):>8.1%}")
        reasons = Counter(outcome.reason for outcome in outcomes if outcome.kind == kind and outcome.reason)
        for reason, number in reasons.most_common(12):
            print(f"            {number:>6}  {reason[:150]}")
    num_supported = len(outcomes) - kinds["refused"] - kinds["no schema"]
    num_ended = num_supported - kinds["too slow"] - kinds["broke off"]
    if num_ended:
        print(f"valid of those supported   {kinds['valid'] / num_supported:.1%}")
        print(f"valid of those that ended  {kinds['valid'] / num_ended:.1%}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path, help="JSON lines, a schema each")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=0, help="so many schemas, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample and of sampling (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=400, help="of a document (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="(default: %(default)s)")
    parser.add_argument("--closing-bias", type=float, default=0.0,
                        help="added to the logits of what ends strings, arrays and objects, of which tiny models "
                             "find no end (default: %(default)s)")  # fmt: skip
    parser.add_argument("--body", type=json.loads, default={}, help="more fields of each request, a JSON object")
    parser.add_argument("--whitespace", choices=["default", "any", "none"], default="default",
                        help="default: response_format; else structured_outputs, with that between tokens")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds for a request (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each schema is added to")
    return parser


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
