"""`octavo chat` in a terminal, `octavo complete`, and the completion of words, as a user meets them."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.tools.server import Server, running

OCTAVO = str(Path(sys.executable).parent / "octavo")
TIMEOUT_S = 120.0
KEY = "sk-terminal"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--device", "sim", "--max-model-len", "512", environment={"OCTAVO_API_KEY": KEY}) as server:
        yield server


def run(*arguments: str, typed: str = "", key: str = KEY) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OCTAVO_API_KEY": key}
    return subprocess.run(
        [OCTAVO, *arguments], input=typed, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


class Terminal:
    """A process that takes it for a person's terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", end: int) -> None:
        self.process, self._end = process, end
        self.shown = ""

    def type(self, text: str) -> str:
        """Type a line; returns what is shown from then on until the next one is asked for."""
        begin = len(self.shown)
        os.write(self._end, text.encode() + b"\r")
        return self.read(begin)

    def leave(self) -> None:
        os.write(self._end, b"/exit\r")

    def read(self, begin: int = 0) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        while "\r\n> " not in self.shown[begin:]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._end], [], [], 1.0)[0]:
                self.shown += os.read(self._end, 4096).decode(errors="replace")
        return self.shown[begin:]


@contextmanager
def terminal(folder: Path, *arguments: str) -> Iterator[Terminal]:
    end, other = pty.openpty()
    environment = os.environ | {"OCTAVO_API_KEY": KEY, "XDG_STATE_HOME": str(folder / "state"), "TERM": "dumb"}
    process = subprocess.Popen([OCTAVO, *arguments], stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    try:
        yield Terminal(process, end)
    finally:
        process.kill()
        process.wait()
        os.close(end)


def test_a_chat_has_commands_turns_of_several_lines_and_a_history(server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    with terminal(tmp_path, "chat", "--url", server.url, "--max-tokens", "3", "--system", "Be brief.") as screen:
        screen.read()
        assert "/save FILE" in screen.type("/help")
        assert "There is no command /nonsense" in screen.type("/nonsense")
        screen.type("first line\\")
        screen.type("second line")
        screen.type('"""')
        screen.type("in")
        screen.type("")
        screen.type("block")
        screen.type('"""')
        assert f"5 messages are in {saved}" in screen.type(f"/save {saved}")
        messages = json.loads(saved.read_text())
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert [each["content"] for each in messages[1::2]] == ["first line\nsecond line", "in\n\nblock"]
        assert {each["role"] for each in messages[2::2]} == {"assistant"} and all(each["content"] for each in messages)
        screen.type("/clear")
        assert "1 messages" in screen.type(f"/save {saved}")
        screen.type("/system")
        assert "0 messages" in screen.type(f"/save {saved}")
        screen.leave()
        assert screen.process.wait(TIMEOUT_S) == 0
    history = tmp_path / "state" / "octavo" / "chat_history"
    assert "second line" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_chat_survives_a_refused_turn(server: Server, tmp_path: Path) -> None:
    with terminal(tmp_path, "chat", "--url", server.url, "--max-tokens", "3") as screen:
        screen.read()
        assert re.search(r"octavo: .* answered 400: messages: it has \d+ tokens", screen.type("long " * 700))
        assert "octavo:" not in screen.type("short")


def test_a_text_is_gone_on_with_from_an_argument_or_standard_input(server: Server) -> None:
    flags = ("--url", server.url, "--max-tokens", "5", "--temperature", "0")
    by_argument = run("complete", *flags, "Once upon")
    by_input = run("complete", *flags, typed="Once upon")
    with_echo = run("complete", *flags, "--echo", "Once upon")

    assert (by_argument.returncode, by_argument.stderr) == (0, "")
    assert by_argument.stdout.strip()
    assert by_input.stdout == by_argument.stdout
    assert with_echo.stdout == "Once upon" + by_argument.stdout
    assert run("complete", *flags, typed="").stderr == (
        "octavo: there is no prompt: give it as an argument, or on standard input\n"
    )


def test_a_reader_that_has_enough_is_no_error(server: Server) -> None:
    command = f"{OCTAVO} complete --url {server.url} --max-tokens 300 Hello | head -c 1"
    environment = os.environ | {"OCTAVO_API_KEY": KEY}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (len(done.stdout), done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["complete", "chat"])
def test_a_wrong_key_and_a_wrong_flag_are_one_sentence(command: str, server: Server) -> None:
    refused = run(command, "--url", server.url, typed="Hello\n", key="wrong")
    assert refused.returncode == 2
    assert re.fullmatch(r"octavo: \S+ answered 401: .* \(the key is read from OCTAVO_API_KEY\)\n", refused.stderr)
    unknown = run(command, "--nonsense")
    assert unknown.stderr == f"octavo: unrecognized arguments: --nonsense; see octavo {command} --help\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_the_completion_script(shell: str, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "max-model-len" in done.stdout and "batch" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_values() -> None:
    ask = 'COMP_WORDS=({words}); COMP_CWORD={place}; _shtab_octavo; echo "${{COMPREPLY[@]}}"'
    questions = [
        ("octavo ba", 1),
        ("octavo serve --max-m", 2),
        ("octavo serve --device ''", 3),
        ("octavo batch --u", 2),
    ]
    lines = [ask.format(words=words, place=place) for words, place in questions]
    program = "\n".join(['source <("$0" completion bash)', *lines])
    done = subprocess.run(["bash", "-c", program, OCTAVO], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout.splitlines() == ["batch", "--max-model-len", "auto cuda cpu sim", "--url"], done.stderr
