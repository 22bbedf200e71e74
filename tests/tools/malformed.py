"""Request bodies that no server may accept: each must be answered with a 4xx that says what is wrong."""

import json
import random

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
SEED = 20260722
NUM_RANDOM = 160  # of each endpoint

_GOOD = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0.5},
    COMPLETION: {"prompt": "Once upon", "max_tokens": 4, "temperature": 0.5},
    RESPONSES: {"input": "Hi", "max_output_tokens": 4, "temperature": 0.5},
    MESSAGES: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0.5},
}

# Values as JSON text, since many of them no encoder would write; in one string where they hold no space.
_NOT_A_NUMBER = tuple('"4" [] {} true NaN -Infinity 1e999 ""'.split())
_NOT_A_COUNT = (*_NOT_A_NUMBER, *"0 -1 1.5 1e3".split(), "9" * 400, "-" + "9" * 400, str(2**64))
_NOT_A_BOOL = tuple('1 0 "true" [] {} NaN'.split())
_NOT_A_TEXT = (*r'1 true [1] {} 1.5 -0 "\ud800" "a\udfffb" "\x"'.split(), '"\x01"')
_BAD_LENGTH = (*_NOT_A_COUNT, str(2**24 + 1))
_BAD_TOOLS = '1 "a" {} [1] ["a"] [{}] [{"type":"function"}] [{"name":"a b"}] [{"type":"function","function":{}}]'.split(
    " "
)
_BAD_FIELDS = {
    "max_tokens": _BAD_LENGTH,
    "n": (*_NOT_A_COUNT, "129", "1000000"),
    "best_of": (*_NOT_A_COUNT, "129"),
    "min_tokens": (*_NOT_A_NUMBER, "-1", "5", "9" * 400),
    "presence_penalty": (*_NOT_A_NUMBER, "-2.001", "2.001"),
    "frequency_penalty": (*_NOT_A_NUMBER, "-2.001", "2.001"),
    "repetition_penalty": (*_NOT_A_NUMBER, "0", "-1", "1000"),
    "logit_bias": tuple('1 "a" [] {"a":1} {"-1":1} {"1":101} {"1":"x"} {"1":null} {"99999999999":1}'.split()),
    "allowed_token_ids": tuple('1 "a" [] {} [-1] [1.5] ["a"] [null]'.split()),
    "stop_token_ids": tuple('1 "a" {} [-1] [1.5] ["a"] [null]'.split()),
    "bad_words": tuple('1 "a" {} [""] [1] [null]'.split()),
    "prompt_logprobs": (*_NOT_A_NUMBER, "-1", "21", "1.5"),
    "truncate_prompt_tokens": (*_NOT_A_NUMBER, "-2", "1.5"),
    "priority": (*_NOT_A_NUMBER, "1.5", str(2**31)),
    "cache_salt": (*'1 true [] {} ""'.split(), f'"{"s" * 1025}"'),
    "response_format": tuple('1 "json" [] {} {"type":"xml"} {"type":"json_schema"} {"type":1}'.split()),
    "structured_outputs": tuple('1 "a" [] {} {"regex":"a","json":{}} {"choice":[]} {"regex":1}'.split()),
    "temperature": (*_NOT_A_NUMBER, *"-0.001 2.001 1e308 -1e308".split()),
    "top_p": (*_NOT_A_NUMBER, *"0 0.0 -0.5 1.0001 1e308".split()),
    "top_k": (*_NOT_A_NUMBER, "-2", "0.5", str(2**31), "9" * 400),
    "min_p": (*_NOT_A_NUMBER, "-0.1", "1.1"),
    "seed": (*_NOT_A_NUMBER, "0.5", str(2**63), str(-(2**63) - 1), "9" * 4000),
    "stop": (*'1 true "" ["a",""] [1] [null] {}'.split(), json.dumps(["a"] * 17), f'"{"s" * 1025}"'),
    "stream": _NOT_A_BOOL,
    "ignore_eos": _NOT_A_BOOL,
    "stream_options": tuple('1 "a" [] true {"include_usage":true} {"include_usage":1}'.split()),
    "model": (*_NOT_A_TEXT, *'"no-such-model" "../../etc/passwd" ""'.split(), f'"{"m" * 100_000}"'),
    "user": _NOT_A_TEXT,
    "tools": tuple(_BAD_TOOLS),
    "tool_choice": tuple('1 "always" [] {} {"type":"function"} {"type":1} "required"'.split()),
}
_OF_CHATS = (
    "max_tokens n best_of prompt_logprobs truncate_prompt_tokens response_format stream_options tools tool_choice"
)
_BAD_EVERYWHERE = {name: values for name, values in _BAD_FIELDS.items() if name not in _OF_CHATS.split()}
_BAD_IN_RESPONSES = {
    "max_output_tokens": _BAD_LENGTH,
    "instructions": _NOT_A_TEXT,
    "top_logprobs": (*_NOT_A_NUMBER, "-1", "21", "1.5"),
    "text": tuple(
        '1 "a" [] {"format":1} {"format":{}} {"format":{"type":"xml"}} {"format":{"type":"json_schema"}}'.split()
    ),
    "reasoning": tuple('1 "low" [] {"effort":1} {"effort":"endless"}'.split()),
    "truncation": tuple('1 [] {} "always"'.split()),
    "include": tuple('1 "a" {} [1] [null]'.split()),
    "metadata": ("1", '"a"', "[]", '{"a":1}', '{"a":{}}', json.dumps({str(number): "a" for number in range(17)})),
    "previous_response_id": (*_NOT_A_TEXT, '"resp_nothing"', '"../../etc/passwd"'),
    "store": _NOT_A_BOOL,
    "background": _NOT_A_BOOL,
    "conversation": ('"conv_1"', "{}"),
    "prompt": ('{"id":"pmpt_1"}', "1"),
    "tools": tuple(_BAD_TOOLS),
    "tool_choice": tuple('1 "always" [] {} {"type":"function"} "required"'.split()),
}
_BAD_IN_MESSAGES = {
    "max_tokens": (*_BAD_LENGTH, "null"),
    "system": tuple('1 true {} [1] ["a"] [{}] [{"type":"text"}] [{"type":"image"}]'.split()),
    "stop_sequences": tuple('1 "a" {} [""] [1] [null]'.split()),
    "thinking": tuple('1 "a" [] {} {"type":"endless"} {"type":"enabled","budget_tokens":-1}'.split()),
    "output_config": tuple('1 "a" [] {"effort":"endless"} {"format":{}} {"format":{"type":"xml"}}'.split()),
    "metadata": tuple('1 "a" [] {"user_id":1}'.split()),
    "tools": tuple('1 "a" {} [1] ["a"] [{}] [{"name":1}] [{"name":"a b"}] [{"name":"a","type":"computer"}]'.split(" ")),
    "tool_choice": tuple('1 "auto" [] {} {"type":"always"} {"type":"tool"} {"type":"any"}'.split()),
}
_FIELDS_OF = {
    CHAT: _BAD_FIELDS | {"max_completion_tokens": _NOT_A_COUNT},
    COMPLETION: {name: values for name, values in _BAD_FIELDS.items() if not name.startswith("tool")},
    RESPONSES: _BAD_EVERYWHERE | _BAD_IN_RESPONSES,
    MESSAGES: _BAD_EVERYWHERE | _BAD_IN_MESSAGES,
}
_NESTED = ("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900)
_GIANT = "a" * (5 * 2**20)  # beyond what a body may have
_BAD_PROMPTS = (
    *'null 1 true {} "" [] [""] ["a",""] [[]] [[1],[]] [-1] [1.5] [1.0] [[1,-1]] [NaN] NaN Infinity'.split(),
    *'["a",1] [1,"a"] ["a",[1]] [[1],1] [null] [true] [{}] [[[1]]] [["a"]] [[1.5]]'.split(),
    *(f"[{number}]" for number in (2**31, 2**63, 2**64, "9" * 400)),
    *(json.dumps(["a"] * 65), json.dumps([[1]] * 65), '"\x00"', '"a\nb"', f'"{_GIANT}"', *_NESTED),
    *r'"\ud800" ["a","\udc00\ud800"]'.split(),
)
_BAD_ROLES = ('"king"', "1", "null", '"USER"', f'"{"r" * 100_000}"')
_BAD_CONTENTS = (*_NOT_A_TEXT, "[1]", '["Hi"]', "[{}]", "[[]]")
_BAD_MESSAGES = (
    *'null 1 true "Hi" {} [] [null] [1] ["Hi"] [[]] [{}] [{"content":"Hi"}] NaN'.split(),
    *(f'[{{"role":{role},"content":"Hi"}}]' for role in _BAD_ROLES),
    *(f'[{{"role":"user","content":{content}}}]' for content in _BAD_CONTENTS),
    *(f'[{{"role":"user","content":[{part}]}}]' for part in ('{"type":"text"}', '{"type":"text","text":5}')),
    '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]',
    *('[{"role":"user","name":5}]', '[{"role":' * 900, f'[{{"role":"user","content":"{_GIANT}"}}]', *_NESTED),
    json.dumps([{"role": "user", "content": "a"}] * 2049),
)
_BAD_INPUTS = (
    *'null 1 true {} [] [null] [1] ["Hi"] [[]] [{}] [{"content":"Hi"}] [{"role":"user"}] NaN'.split(),
    *(f'[{{"role":{role},"content":"Hi"}}]' for role in _BAD_ROLES if role != "null"),
    *(f'[{{"role":"user","content":{content}}}]' for content in _BAD_CONTENTS),
    *(
        f'[{{"type":"{kind}"}}]'
        for kind in ("message", "function_call", "function_call_output", "image", "item_reference")
    ),
    '[{"role":"user","content":[{"type":"input_image","image_url":"file:///etc/passwd"}]}]',
    *('[{"role":' * 900, f'"{_GIANT}"', *_NESTED, '[{"type":"reasoning","summary":[]}]'),
)
_BAD_TURNS = (
    *_BAD_MESSAGES,
    *(f'[{{"role":"{role}","content":[]}}]' for role in ("user", "assistant", "system")),
    *(f'[{{"role":"user","content":[{{"type":"{kind}"}}]}}]' for kind in ("text", "image", "tool_use", "tool_result")),
    *(f'[{{"role":"assistant","content":[{{"type":"{kind}"}}]}}]' for kind in ("thinking", "tool_use", "tool_result")),
)
_BAD_MAIN = {
    CHAT: ("messages", _BAD_MESSAGES),
    COMPLETION: ("prompt", _BAD_PROMPTS),
    RESPONSES: ("input", _BAD_INPUTS),
    MESSAGES: ("messages", _BAD_TURNS),
}
_NOT_AN_OBJECT = (
    *rb"""null true 1 - 1e999 NaN "text" [] [{}] {} { } {] {,} {'prompt':'a'} {"prompt""a"}""".split(),
    *rb"""{"prompt":"a",} {prompt:1} {}{} <xml/> prompt=a&max_tokens=4 --b--""".split(),
    *(b"", b" ", b"\x00", b"\n\n", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00"),
    *(b"\xff", b"\xc3\x28", b"\xed\xa0\x80"),
    *(b"[" * 200_000, b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000),
)


def malformed_bodies() -> list[tuple[str, bytes, bool]]:
    """The whole corpus, the same each time, at least 500 entries, none twice.

    Returns:
        The path to post to, the body, and whether only a server with a model's vocabulary can see the fault.
    """
    random_source = random.Random(SEED)
    bodies: dict[tuple[str, bytes], bool] = {}
    for path, good in _GOOD.items():
        whole = json.dumps(good).encode()
        ours = list(_NOT_AN_OBJECT)
        ours += [whole[:length] for length in range(1, len(whole), 2)]
        ours += [whole + tail for tail in (b"x", b"}", b",", b"\x00", b'{"n": 1}', b" null")]
        ours += _bad_fields(path)
        ours += [_with_bad_fields(path, random_source) for _ in range(NUM_RANDOM)]
        ours += _broken_text(whole, random_source)
        bodies |= {(path, body): False for body in ours}
    bodies |= {(COMPLETION, body): True for body in _beyond_the_model()}
    return [(path, body, needs_model) for (path, body), needs_model in bodies.items()]


def _bad_fields(path: str) -> list[bytes]:
    """One wrong value in an otherwise good body, for every field and value; and bodies that lack a field."""
    main, values = _BAD_MAIN[path]
    bad = [_body(path, {main: value}) for value in values]
    bad += [_body(path, {name: value}) for name, values in _FIELDS_OF[path].items() for value in values]
    bad.append(json.dumps({name: value for name, value in _GOOD[path].items() if name != main}).encode())
    return bad


def _with_bad_fields(path: str, random_source: random.Random) -> bytes:
    """Two or three wrong values at once, in any order, among fields that nobody knows."""
    fields = _FIELDS_OF[path]
    names = random_source.sample(sorted(fields), random_source.randint(2, 3))
    changes = {name: random_source.choice(fields[name]) for name in names}
    changes[f"unknown_{random_source.randrange(1000)}"] = random_source.choice(("1", "null", "[[]]", '"a"'))
    shuffled = list(changes.items())
    random_source.shuffle(shuffled)
    return _body(path, dict(shuffled))


def _broken_text(whole: bytes, random_source: random.Random) -> list[bytes]:
    """A good body with one byte put in that may stand nowhere in JSON: inside texts or outside of them."""
    places = [random_source.randrange(1, len(whole)) for _ in range(20)]
    control = (b"\x00", b"\x02", b"\x1f")
    return [whole[:place] + random_source.choice(control) + whole[place:] for place in places]


def _beyond_the_model() -> list[bytes]:
    """Of the right shape, but with tokens that SmolLM2 does not have, or more of them than it takes."""
    prompts: list[object] = [[49152], [2**31 - 1], [1, 2, 49152], [[1], [49152]], [[60_000], [1]]]
    prompts += [[1] * 300_000, "a b " * 300_000]
    return [json.dumps({"prompt": prompt, "max_tokens": 4}).encode() for prompt in prompts]


def _body(path: str, changes: dict[str, str]) -> bytes:
    """The good body with fields replaced by JSON text."""
    fields = {name: json.dumps(value) for name, value in _GOOD[path].items()} | changes
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()
