"""The `octavo` command: what each of its subcommands prints, and its exit codes."""

import subprocess
import sys
from pathlib import Path

from tests.tools.server import Server

import octavo

OCTAVO = str(Path(sys.executable).parent / "octavo")
TIMEOUT_S = 240.0


def run(*arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([OCTAVO, *arguments], input=typed, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_version_is_the_packages() -> None:
    done = run("version")
    assert (done.returncode, done.stdout) == (0, f"octavo {octavo.__version__}\n")


def test_doctor_finds_nothing_missing_here() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "Nothing is missing" in done.stdout
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert {"machine", "python", "torch", "device", "dtype", "model"} <= set(names)


def test_doctor_names_the_model_that_is_not_there() -> None:
    done = run("doctor", "/no/such/folder")
    assert done.returncode == 1
    assert "Problem: there is no folder or file /no/such/folder" in done.stdout


def test_help_names_every_group_of_settings() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    words = ("HTTP", "model:", "scheduler:", "KV cache:", "--max-model-len", "--port")
    assert [word for word in words if word not in done.stdout] == []


def test_a_command_that_does_not_exist_is_named() -> None:
    done = run("sevre")
    assert done.returncode == 2
    assert "'sevre'" in done.stderr
    assert "serve" in done.stderr


def test_a_line_piped_into_chat_is_answered(sim_server: Server) -> None:
    done = run("chat", "--url", sim_server.url, "--max-tokens", "8", typed="Hello there\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    again = run("chat", "--url", sim_server.url, "--max-tokens", "8", "--system", "Be brief.", typed="One\nTwo\n")
    assert again.returncode == 0
    refused = run("chat", "--url", sim_server.url, "--model", "other", typed="Hello\n")
    assert refused.returncode == 2
    assert refused.stderr == f"octavo: {sim_server.url} answered 404: " + refused.stderr.partition("404: ")[2]
    assert "'other' does not exist" in refused.stderr


def test_chat_says_that_no_server_is_there() -> None:
    done = run("chat", "--url", "http://127.0.0.1:9", typed="Hello\n")
    assert done.returncode == 2
    assert done.stderr.startswith("octavo: http://127.0.0.1:9 does not answer")
    assert done.stderr.count("\n") == 1
