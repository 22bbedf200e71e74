"""Start, end, and the sentences of a server that cannot start."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no type information
import pytest
from tests.tools.server import Server, is_alive, running, started, wait_until

OCTAVO = str(Path(sys.executable).parent / "octavo")
END_S = 20.0  # of a machine that other work slows down; on a quiet one it takes less than 2 s
ANSWER_S = 180.0  # a model whose threads wait for each other on a busy machine is slow
REFUSE_S = 240.0


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`octavo serve` with arguments that make it end by itself."""
    command = [OCTAVO, "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=REFUSE_S, env=os.environ | variables)


def shared_memory(processes: Sequence[psutil.Process]) -> set[Path]:
    """The files in memory that processes have mapped."""
    paths = (mapped.path for process in processes for mapped in process.memory_maps())
    return {Path(path) for path in paths if path.startswith("/dev/shm/")}


def test_the_start_is_told_stage_by_stage_and_ends_with_a_line_to_try() -> None:
    with running(environment={"OMP_NUM_THREADS": "2"}) as server:  # as users have it, whatever a worker is told
        stages = re.findall(r"^  (\w+) +\d+\.\d\d s", server.output, re.MULTILINE)
        assert {"scheduler", "tokenizer", "torch", "weights", "model"} <= set(stages)
        assert f"curl {server.url}/v1/chat/completions -H" in server.output
        assert "Traceback" not in server.errors
        curl = next(line for line in server.output.splitlines() if line.startswith("  curl "))
        done = subprocess.run(f"{curl} -s", shell=True, capture_output=True, text=True, timeout=ANSWER_S)
        assert '"role":"assistant"' in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_leaves_nothing(number: signal.Signals) -> None:
    with running("--device", "sim", "--tokenizers", "2") as server:
        services = server.services()
        assert len(services) == 5
        memory = shared_memory(services)
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(2 * END_S) == 0
        assert time.monotonic() - began < END_S
        assert not any(is_alive(each) for each in services)
        assert list(server.folder.glob("octavo-*")) == []
        assert not any(path.exists() for path in memory)
        assert server.errors == ""


def test_ctrl_c_during_the_start_ends_everything() -> None:
    with started("--device", "sim") as (process, folder):
        wait_until(lambda: len(process.children()) == 4, "all services are started")
        services = process.children()
        process.send_signal(signal.SIGINT)
        assert process.wait(2 * END_S) == 0
        assert not any(is_alive(each) for each in services)
        assert list(folder.glob("octavo-*")) == []
        assert "Traceback" not in (folder / "stderr").read_text()


def test_services_die_with_a_launcher_that_is_killed() -> None:
    with running("--device", "sim") as server:
        services = server.services()
        server.process.kill()
        server.process.wait(END_S)
        wait_until(lambda: not any(is_alive(each) for each in services), "the services die", END_S)
        for left in server.folder.glob("octavo-*/*"):
            left.unlink()
        for left in server.folder.glob("octavo-*"):
            left.rmdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/folder"], ["/no/such/folder"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--port", "70000"], ["--port", "70000", "65535"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--block-size", "3"], ["--block-size", "3"]),
        (["--max-model-len", "1000000"], ["--max-model-len", "1000000", "8192"]),
        (["--host", "0.0.0.0"], ["--host", "--api-key", "--insecure"]),
    ],
)
def test_a_wrong_argument_ends_in_one_sentence(arguments: Sequence[str], words: Sequence[str]) -> None:
    done = run("--port", "0", *arguments)
    assert done.returncode in (1, 2)
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr + done.stdout
    sentences = [line for line in done.stderr.splitlines() if line.startswith("octavo")]
    assert len(sentences) == 1, done.stderr


def test_a_folder_too_deep_for_sockets_ends_in_one_sentence(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    done = run("--port", "0", "--device", "sim", TMPDIR=str(deep))
    assert done.returncode == 1
    assert re.fullmatch(rf"octavo: .*{deep}/.* characters; .* allows 80 .*TMPDIR.*\n", done.stderr)
    assert list(deep.iterdir()) == []


def test_a_port_in_use_ends_in_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("--device", "sim", "--port", str(port))
    assert done.returncode == 2
    assert re.fullmatch(rf"octavo: .*{port}.*--port\n", done.stderr)


def test_the_port_of_another_server_is_in_use(sim_server: Server) -> None:
    done = run("--device", "sim", "--port", str(sim_server.port))
    assert done.returncode == 2
    assert sim_server.get("/readyz")


def test_two_servers_do_not_disturb_each_other(sim_server: Server) -> None:
    pids = sim_server.pids()
    with running("--device", "sim") as second:
        assert sim_server.port != second.port
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(2 * END_S) == 0
        assert sim_server.get("/readyz")
        assert sim_server.pids() == pids
