"""One grammar through xgrammar: compiled, tried out and serialized; in a process of its own (grammar_worker.py)."""

import os
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from octavo.services.tokenizer.json_schema import find_unsupported
from octavo.shared.grammar import MAX_CHOICES, GrammarSpec, GrammarVocabulary, load_xgrammar, tokenizer_info

MAX_THREADS = 4
WARM_LENGTHS = (32, 64, 128, 255)
"""Of strings; beyond the last xgrammar counts otherwise."""
TRY_TOKENS = 48
TRY_S = 0.25
"""Of CPU time for these tokens: an executor that steps for all waits for every one."""

# xgrammar says where in its sources it raised, and which check of its own failed.
_NOISE = re.compile(r"^\[[\d:]+\] \S+: |Check failed: \(.*?\) is false: |Invalid structural tag error: ")
# Said on standard error, and the grammar made without what is spoken of.
_WARNING = re.compile(r"^\[[\d:]+\] \S+: Warning: (.*)$", re.MULTILINE)
_HARMLESS = "oneOf with overlapping"


class Unfit(Exception):
    """A grammar that cannot be used; the sentence is for its author."""


class Tokens:
    """What is made of a vocabulary once, for all grammars.

    compiler: remembers the rules that it has compiled, which forks inherit.
    """

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        import torch

        xgrammar = load_xgrammar()
        num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))
        self.info = tokenizer_info(vocabulary)
        self.compiler = xgrammar.GrammarCompiler(self.info, max_threads=num_threads)
        self._cold = list(WARM_LENGTHS)
        self.lengths = torch.tensor([len(piece) for piece in vocabulary.pieces])
        self.bits = torch.arange(32, dtype=torch.int32)
        self.mask = xgrammar.allocate_token_bitmask(1, vocabulary.width)

    @property
    def is_cold(self) -> bool:
        return bool(self._cold)

    def warm_up(self) -> None:
        """Compile a part of the rules that many grammars have and that take long: seconds on a slow core in all.

        No shorter string takes anything after that, and a longer one a third.
        """
        self.compiler.compile_json_schema(f'{{"type":"string","maxLength":{self._cold.pop(0)}}}')


def compile_grammar(spec: GrammarSpec, tokens: Tokens) -> bytes:
    """The compiled grammar as xgrammar serializes it. Raises Unfit, and MemoryError."""
    warnings = _catch_standard_error()
    try:
        compiled = compile_spec(spec, tokens)
        for warning in _WARNING.findall(_read(warnings)):
            if not warning.startswith(_HARMLESS):
                raise Unfit(warning)
        _try_out(load_xgrammar().GrammarMatcher(compiled), tokens)
        return compiled.serialize_json().encode()  # type: ignore[no-any-return]
    except RuntimeError as error:
        message = str(error)
        if "bad_alloc" in message:
            raise MemoryError from None
        raise Unfit(_NOISE.sub("", message).partition("\n")[0][:400]) from None


def compile_spec(spec: GrammarSpec, tokens: Tokens) -> Any:
    """As `compile_untried`. Some schemas fail a check in xgrammar's cache of rules, and compile without it."""
    try:
        return compile_untried(spec, tokens.compiler)
    except RuntimeError as error:
        if "per_rule_fsm_hashes" not in str(error):
            raise
        return compile_untried(spec, load_xgrammar().GrammarCompiler(tokens.info, cache_enabled=False))


def compile_untried(spec: GrammarSpec, compiler: Any) -> Any:
    """xgrammar.CompiledGrammar. Raises Unfit, and RuntimeError as xgrammar does."""
    decoded = _decode(spec.value) if spec.kind in ("json_schema", "structural_tag") else None
    for schema in [decoded] if spec.kind == "json_schema" else _schemas_in(decoded):
        if (unsupported := find_unsupported(schema)) is not None:
            raise Unfit(unsupported)
    if spec.lead:
        elements = [_decode(spec.lead), {"type": "grammar", "grammar": _ebnf(spec)}]
        whole = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
        return compiler.compile_structural_tag(msgspec.json.encode(whole).decode())
    if spec.kind == "json_schema":
        return compiler.compile_json_schema(spec.value, any_whitespace=spec.any_whitespace, strict_mode=spec.strict)
    if spec.kind == "json_object":
        return compiler.compile_json_schema('{"type":"object"}', any_whitespace=spec.any_whitespace, strict_mode=False)
    if spec.kind == "regex":
        return compiler.compile_regex(spec.value)
    if spec.kind == "choice":
        return compiler.compile_grammar(_choice_grammar(_decode(spec.value)))
    if spec.kind == "ebnf":
        return compiler.compile_grammar(spec.value)
    return compiler.compile_structural_tag(spec.value)


def _ebnf(spec: GrammarSpec) -> str:
    """The text of a grammar, to be a part of a structural tag."""
    grammar = load_xgrammar().Grammar
    if spec.kind == "json_schema":
        return str(grammar.from_json_schema(spec.value, any_whitespace=spec.any_whitespace, strict_mode=spec.strict))
    if spec.kind == "regex":
        return str(grammar.from_regex(spec.value))
    if spec.kind == "choice":
        return _choice_grammar(_decode(spec.value))
    assert spec.kind == "ebnf", f"a grammar of kind {spec.kind} has no lead"
    return spec.value


def _schemas_in(tag: object) -> Iterator[object]:
    """The JSON schemas of a structural tag, or of a part of one."""
    if isinstance(tag, list):
        for each in tag:
            yield from _schemas_in(each)
    elif isinstance(tag, dict):
        yield from (tag[name] for name in ("json_schema", "schema") if name in tag)
        for name in ("format", "structures", "elements", "content", "tags", "rules"):
            yield from _schemas_in(tag.get(name))


def _decode(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Unfit(f"it is no JSON: {error}") from None


def _choice_grammar(choices: object) -> str:
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise Unfit("choices must be a list of strings, none of them empty")
    if len(choices) > MAX_CHOICES:
        raise Unfit(f"there are {len(choices)} choices; at most {MAX_CHOICES} are taken")
    return "root ::= " + " | ".join(_quote(each) for each in choices)


def _quote(text: str) -> str:
    """A string as EBNF has it; what is no plain character by its code point."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'


def _try_out(matcher: Any, tokens: Tokens) -> None:
    """Let a grammar take some of the longest tokens that it allows.

    Raises Unfit for one that allows no text, or that is slow at it: some ambiguous grammars take seconds a token.
    """
    mask, lengths = tokens.mask, tokens.lengths
    took_s = 0.0
    for number in range(TRY_TOKENS):
        began = time.thread_time()
        matcher.fill_next_token_bitmask(mask)
        took_s += time.thread_time() - began
        allowed = ((mask[0].unsqueeze(-1) >> tokens.bits) & 1).flatten()[: len(lengths)].nonzero().flatten()
        if len(allowed) == 0 and number == 0:
            raise Unfit("no text can follow the grammar")
        if len(allowed) == 0 or took_s > TRY_S:
            break
        token = int(allowed[lengths[allowed].argmax()])
        began = time.thread_time()
        matcher.accept_token(token)
        took_s += time.thread_time() - began
        if matcher.is_terminated():
            break
    if took_s > TRY_S:
        raise Unfit(
            f"the grammar is too slow to follow: {number + 1} tokens took {took_s:.2f} s to check, "
            f"and {TRY_TOKENS} may take {TRY_S:g} s"
        )


def _catch_standard_error() -> int:
    """From now on it goes into a file in memory, whose descriptor is returned."""
    caught = os.memfd_create("warnings")
    os.dup2(caught, 2)
    return caught


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace")
