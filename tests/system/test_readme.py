"""What README and the examples say works as it stands there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tools.server import Server, running

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"README has no {language} block"
    return found


def run(command: list[str], url: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OCTAVO_URL": url}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_chat_by_curl_says_tokyo(server: Server) -> None:
    answer = run(["bash", "-c", blocks("bash")[0].replace(ADDRESS, server.url)], server.url)

    assert "Tokyo" in answer


def test_the_completion_by_curl_streams_to_its_end(server: Server) -> None:
    answer = run(["bash", "-c", blocks("bash")[1].replace(ADDRESS, server.url)], server.url)

    assert answer.count("data: {") >= 20
    assert answer.rstrip().endswith("data: [DONE]")


def test_the_openai_client_says_tokyo(server: Server) -> None:
    answer = run([sys.executable, "-c", blocks("python")[0].replace(ADDRESS, server.url)], server.url)

    assert "Tokyo" in answer


def test_the_examples_run(server: Server) -> None:
    assert "Tokyo" in run([sys.executable, str(ROOT / "examples" / "chat.py")], server.url)
    assert "data: [DONE]" in run([str(ROOT / "examples" / "stream.sh")], server.url)


def test_every_command_that_the_readme_names_exists() -> None:
    commands = set(re.findall(r"^\| `octavo (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))

    help_text = run([sys.executable, "-P", "-m", "octavo.services.cli"], "")

    assert commands == {"serve", "chat", "bench", "doctor", "version"}
    assert all(f"  {command}" in help_text for command in commands)
