"""The `llm` command, told of the server by extra-openai-models.yaml."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = shutil.which("llm", path=str(Path(sys.executable).parent)) or shutil.which("llm")

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(COMMAND is None, reason="needs llm: pip install llm"),
]

MODELS = """
- model_id: octavo
  model_name: {model}
  api_base: {url}
  api_key_name: octavo
  supports_schema: true
  supports_tools: true
- model_id: octavo-base
  model_name: {model}
  api_base: {url}
  api_key_name: octavo
  completion: true
"""

Llm = Callable[..., str]


@pytest.fixture
def llm(tmp_path: Path, url: str, key: str, model: str) -> Llm:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=url, model=model))
    (tmp_path / "keys.json").write_text(json.dumps({"octavo": key}))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(COMMAND), *arguments], env=os.environ | {"LLM_USER_PATH": str(tmp_path)}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_model_is_known(llm: Llm) -> None:
    assert "octavo" in llm("models", "list")


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_a_question(llm: Llm, flags: list[str]) -> None:
    answer = llm("prompt", "-m", "octavo", *flags, "-o", "temperature", "0", "What is the capital of Japan?")
    assert "Tokyo" in answer


def test_a_conversation_goes_on(llm: Llm) -> None:
    options = ["-m", "octavo", "-o", "temperature", "0", "-o", "max_tokens", "20"]
    llm("prompt", *options, "What is the capital of Japan?")
    assert "Paris" in llm("prompt", "-c", *options, "And of France?")


def test_a_schema(llm: Llm) -> None:
    answer = llm(
        "prompt", "-m", "octavo", "-o", "temperature", "0", "-o", "max_tokens", "200", "--schema", "name, age int",
        "Tell me about Anna, who is 31 years old.",
    )  # fmt: skip
    assert json.loads(answer) == {"name": "Anna", "age": 31}


def test_a_completion(llm: Llm) -> None:
    options = ["-o", "temperature", "0", "-o", "max_tokens", "4"]
    assert "Wednesday" in llm("prompt", "-m", "octavo-base", *options, "Monday, Tuesday,")
