"""What README, docs and the examples say works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tools.server import Server

from octavo.shared.config import parse

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(model_server: Server) -> Server:
    return model_server


def blocks(language: str, page: str = "README.md") -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found, f"{page} has no {language} block"
    return found


def run(command: list[str], url: str, folder: Path | None = None) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OCTAVO_URL": url, "PATH": path},
        check=False, cwd=folder,
    )  # fmt: skip
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


def test_the_commands_of_the_docs_answer(server: Server, tmp_path: Path) -> None:
    talk, batch = (block.replace(ADDRESS, server.url) for block in blocks("bash", "docs/cli.md"))

    said = run(["bash", "-e", "-c", talk], server.url)
    assert said.count("Tokyo") == 2, said  # of the completion and of the chat
    assert "2 requests answered, 0 failed" in run(["bash", "-e", "-c", batch], server.url, tmp_path)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_the_settings_file_of_the_docs_is_taken(tmp_path: Path) -> None:
    (tmp_path / "octavo.yaml").write_text(blocks("yaml", "docs/cli.md")[0])

    config = parse(["--config", str(tmp_path / "octavo.yaml"), "--port", "9000"], "octavo serve", "")

    assert config.model_names == ["qwen", "default"]
    assert (config.model, config.max_model_len, config.port) == ("Qwen/Qwen3-0.6B", 4096, 9000)


def test_the_python_of_the_docs_says_tokyo() -> None:
    whole, streamed = blocks("python", "docs/python.md")

    said = run([sys.executable, "-c", whole], "")
    assert said.startswith("The capital of Japan is [") and said.count("Tokyo") == 2, said
    without_model = streamed.replace("AsyncLLM(", 'AsyncLLM(device="sim", ')
    assert run([sys.executable, "-c", without_model], "").count("\n") >= 5


def test_every_command_that_the_readme_names_exists() -> None:
    commands = set(re.findall(r"^\| `octavo (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))

    help_text = run([sys.executable, "-P", "-m", "octavo.services.cli"], "")

    assert commands == {"serve", "chat", "complete", "batch", "bench", "doctor", "completion", "version"}
    assert all(f"  {command}" in help_text for command in commands)
