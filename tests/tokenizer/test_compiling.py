"""Calls that wait for their grammars, and the operator's limits on these."""

import time
from pathlib import Path

import pytest
from tests.tokenizer.core_harness import MODEL, VOCABULARY, completion

pytest.importorskip("xgrammar", reason="xgrammar is not installed")

from tests.tools.grammars import DEADLINE_S

from octavo.services.tokenizer.compiling import Compiling, Waiting, limits_of
from octavo.shared.config import parse
from octavo.shared.errors import InvalidRequest
from octavo.shared.grammar import GrammarSpec
from octavo.shared.transport import wait


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--max-grammar-compile-s", "0.0001"], "0.0001 s of CPU time to compile (--max-grammar-compile-s)"),
        (["--max-grammar-compile-mib", "16"], "16 MiB (--max-grammar-compile-mib)"),
    ],
)
def test_a_grammar_beyond_a_limit_is_its_requests_error_and_names_the_flag(
    flags: list[str], sentence: str, tmp_path: Path
) -> None:
    compiling = Compiling(tmp_path, VOCABULARY, limits_of(parse(flags, "octavo serve", "")))
    waiting = Waiting(0, completion(), "structured_outputs")
    assert compiling.key_of(GrammarSpec("regex", "(a|aa)+(b|bb)+" * 2000), MODEL, waiting) is None

    deadline = time.monotonic() + DEADLINE_S
    while not (answers := compiling.take_answers()) and time.monotonic() < deadline:
        wait([], 0.5, compiling.fds)
    compiling.close()

    [(found, error)] = answers
    assert found is waiting and isinstance(error, InvalidRequest)
    assert error.message.startswith("structured_outputs: the grammar ") and sentence in error.message
