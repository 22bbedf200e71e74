"""The system as `docker compose up` starts it, with containers that die while it works."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from octavo.shared.oracle import expected_tokens

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[2]
UP_S = 600.0  # the first build installs torch
COMMAND_S = 120.0
DEADLINE_S = 120.0
SIM_STEP_MS = 20
NUM_STREAMS = 20
MAX_TOKENS = 600  # 12 s, in which containers are killed and started
VOCAB_SIZE = 49_152  # of the default model
SERVICES = ("gateway", "tokenizer", "scheduler", "executor")


class Stack:
    """A compose project of the repository's compose.yaml."""

    def __init__(self, project: str, octavo_args: str) -> None:
        self._project = project
        # Port 0: the tests run beside a server that is in use. The rest keeps out what the user has set.
        self._environment = os.environ | {
            "OCTAVO_PORT": "0",
            "OCTAVO_ARGS": octavo_args,
            "OCTAVO_API_KEY": "",
            "OCTAVO_MODELS": "models",
            "TOKENIZERS": "1",
        }

    def compose(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        command = ("docker", "compose", "-p", self._project, *arguments)
        return _run(*command, timeout_s=timeout_s, env=self._environment)

    def up(self, *arguments: str, num_tokenizers: int) -> None:
        """Bring everything up, and wait until it is healthy."""
        scale = ("--scale", f"tokenizer={num_tokenizers}")
        self.compose("up", "-d", "--wait", *scale, *arguments, timeout_s=UP_S)

    def containers(self, service: str) -> list[str]:
        """The ids of those that run."""
        return self.compose("ps", "-q", service).split()

    def request(self, path: str, body: object = None) -> urllib.request.Request:
        url = f"http://{self.compose('port', 'gateway', '8000')}{path}"
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(url, data, {"Content-Type": "application/json"})

    def ask(self, path: str, body: object = None) -> dict[str, object]:
        with urllib.request.urlopen(self.request(path, body), timeout=DEADLINE_S) as answer:
            found: dict[str, object] = json.load(answer)
            return found


class Stream:
    """A request to the simulated model, read in a thread of its own."""

    def __init__(self, stack: Stack, number: int) -> None:
        prompt = list(range(number, 3 * number + 40))
        self.expected = expected_tokens(prompt, MAX_TOKENS, VOCAB_SIZE)
        self.token_ids: list[int] = []
        body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "ignore_eos": True}
        self._request = stack.request("/v1/completions", body | {"stream": True, "return_token_ids": True})

    def read(self) -> None:
        with urllib.request.urlopen(self._request, timeout=DEADLINE_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    self._take(json.loads(line.removeprefix(b"data: ")))

    def _take(self, chunk: dict[str, list[dict[str, list[int]]]]) -> None:
        assert "error" not in chunk, chunk
        self.token_ids += chunk["choices"][0].get("token_ids", [])


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with _running("sim", f"--device sim --sim-step-ms {SIM_STEP_MS}", num_tokenizers=3) as stack:
        yield stack


def test_everything_is_healthy_and_names_its_model(stack: Stack) -> None:
    states = [json.loads(line) for line in stack.compose("ps", "--format", "json").splitlines()]
    assert [state["Health"] for state in states] == ["healthy"] * 6
    models = stack.ask("/v1/models")["data"]
    assert isinstance(models, list)
    assert [model["id"] for model in models] == ["SmolLM2-135M-Instruct"]


def test_streams_outlive_a_killed_tokenizer_and_the_start_of_others(stack: Stack) -> None:
    with _streaming(stack) as streams:
        _run("docker", "kill", stack.containers("tokenizer")[0])
        assert any(len(stream.token_ids) < MAX_TOKENS for stream in streams)
        stack.up("--no-recreate", num_tokenizers=5)
    assert [stream.token_ids for stream in streams] == [stream.expected for stream in streams]
    assert len(stack.containers("tokenizer")) == 5


def test_streams_outlive_a_crash_of_the_executor(stack: Stack) -> None:
    [executor] = stack.containers("executor")
    with _streaming(stack) as streams:
        _crash(executor)
        assert any(len(stream.token_ids) < MAX_TOKENS for stream in streams)
    assert [stream.token_ids for stream in streams] == [stream.expected for stream in streams]
    assert _num_restarts(executor) == 1


def test_streams_outlive_a_crash_of_the_scheduler(stack: Stack) -> None:
    [scheduler] = stack.containers("scheduler")
    with _streaming(stack) as streams:
        _crash(scheduler)
        assert any(len(stream.token_ids) < MAX_TOKENS for stream in streams)
    assert [stream.token_ids for stream in streams] == [stream.expected for stream in streams]
    assert _num_restarts(scheduler) == 1


def test_a_crashed_gateway_serves_again(stack: Stack) -> None:
    [gateway] = stack.containers("gateway")
    _crash(gateway)
    _until(lambda: _num_restarts(gateway) == 1 and _is_ready(stack))
    stream = Stream(stack, 1)
    stream.read()
    assert stream.token_ids == stream.expected


def test_all_services_end_by_themselves_when_told_to(stack: Stack) -> None:
    containers = [container for service in SERVICES for container in stack.containers(service)]
    stack.compose("stop")
    codes = _run("docker", "inspect", "-f", "{{.State.ExitCode}}", *containers).split()
    assert codes == ["0"] * len(containers)


def test_the_default_model_answers_on_this_cpu() -> None:
    question = {"role": "user", "content": "What is the capital of Japan?"}
    with _running("cpu", "--device cpu", num_tokenizers=1) as stack:
        body = {"messages": [question], "temperature": 0, "max_tokens": 20}
        assert "Tokyo" in str(stack.ask("/v1/chat/completions", body)["choices"])


def test_the_gpu_file_gives_the_executor_alone_a_gpu() -> None:
    _need_docker()
    files = ("-f", "compose.yaml", "-f", "compose.gpu.yaml")
    services = json.loads(Stack("octavo-gpu", "").compose(*files, "config", "--format", "json"))["services"]
    executor = services["executor"]
    [device] = executor["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert executor["command"][-2:] == ["--device", "cuda"]
    assert [name for name, service in services.items() if service["image"] != "octavo"] == ["executor"]


@contextmanager
def _running(name: str, octavo_args: str, num_tokenizers: int) -> Iterator[Stack]:
    """A stack of its own name that is healthy, and that is removed afterwards."""
    _need_docker()
    stack = Stack(f"octavo-test-{name}-{os.getpid()}", octavo_args)
    try:
        stack.up("--build", num_tokenizers=num_tokenizers)
        yield stack
    except BaseException:
        print(stack.compose("logs", "--tail", "30"))
        raise
    finally:
        stack.compose("down", "-v", "--remove-orphans", "-t", "2")


@contextmanager
def _streaming(stack: Stack) -> Iterator[list[Stream]]:
    """NUM_STREAMS streams that have all begun; at the end of the block, that have all ended."""
    streams = [Stream(stack, number) for number in range(1, NUM_STREAMS + 1)]
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        done = [threads.submit(stream.read) for stream in streams]
        _until(lambda: all(len(stream.token_ids) > 10 for stream in streams))
        yield streams
        for each in done:
            each.result(DEADLINE_S)


def _crash(container: str) -> None:
    """Kill what runs in a container; `docker kill` counts as stopped by hand, and nothing starts it anew."""
    # The command itself may end with 137, killed along with the container.
    command = ("docker", "exec", container, "sh", "-c", "kill -9 -1")
    subprocess.run(command, capture_output=True, timeout=COMMAND_S)


def _is_ready(stack: Stack) -> bool:
    try:
        return stack.ask("/readyz") == {"status": "ready"}
    except (OSError, subprocess.CalledProcessError):  # while it starts it has no port, and then another one
        return False


def _num_restarts(container: str) -> int:
    return int(_run("docker", "inspect", "-f", "{{.RestartCount}}", container))


def _until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _need_docker() -> None:
    """Skip the test without a Docker engine and compose; fail it if REQUIRE_COMPOSE is set."""
    for what, command in (
        ("a Docker engine", ("docker", "version", "--format", "{{.Server.Version}}")),
        ("docker compose v2", ("docker", "compose", "version", "--short")),
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_S)
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            (pytest.fail if os.environ.get("REQUIRE_COMPOSE") else pytest.skip)(f"needs {what}: {reason}")


def _run(*command: str, timeout_s: float = COMMAND_S, env: dict[str, str] | None = None) -> str:
    """What a command says. Raises CalledProcessError, with its last words, if it fails."""
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    if ended.returncode:
        error = subprocess.CalledProcessError(ended.returncode, command)
        error.add_note(f"{ended.stdout}\n{ended.stderr[-4000:]}")
        raise error
    return ended.stdout.strip()
