"""`octavo bench` against real services and against servers that fail: exact counts, and sentences for what is wrong."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.tools.server import Server, running, wait_until

OCTAVO = str(Path(sys.executable).parent / "octavo")
TIMEOUT_S = 240.0
WARM_UP = 4  # requests


@pytest.fixture(scope="module")
def server(sim_server: Server) -> Server:
    return sim_server


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([OCTAVO, "bench", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_request_and_token_is_counted_once(tmp_path: Path) -> None:
    """By the server too: it is one of this test's own, for what others have asked is counted up to a second late."""
    with running("--device", "sim") as server:
        check_counts(server, tmp_path)


def check_counts(server: Server, tmp_path: Path) -> None:
    flags = ("--concurrency", "1,19", "--requests", "21", "--input-len", "16", "--output-len", "5", "--processes", "3")
    done = bench("serve", "--url", server.url, *flags, "--out", str(tmp_path / "out"))

    assert (done.returncode, done.stderr) == (0, "")
    levels = lines_of(tmp_path / "out")
    assert [each["concurrency"] for each in levels] == [1, 19]
    for each in levels:
        assert (each["requests"], each["errors"], each["output_tokens"]) == (21, 0, 21 * 5)
        assert each["input_tokens"] >= 21 * 16
        assert each["output_tok_s"] == pytest.approx(21 * 5 / each["seconds"], rel=0.05)  # seconds are rounded
        assert 0 < each["ttft_ms_p50"] <= each["ttft_ms_p99"] <= each["e2e_ms_p99"]
        assert each["gap_ms_p50"] > 0
        assert each["engine"] == "octavo" and each["model"] == "SmolLM2-135M-Instruct"
        assert f"octavo bench serve --url {server.url} --concurrency 1,19" in each["command"]
        assert each["machine"]["cpu"] and re.match(r"\d{4}-\d\d-\d\dT", each["date"])
    assert [each["clients"] for each in levels] == [1, 2]
    assert re.search(r"^ +19 +21 +0 ", done.stdout, re.MULTILINE), done.stdout
    wanted = (WARM_UP + 2 * 21) * 5
    wait_until(lambda: server.metric("vllm:generation_tokens_total") == wanted, f"{wanted} tokens were generated")


def test_chats_at_a_rate_take_the_time_that_the_rate_says(server: Server, tmp_path: Path) -> None:
    flags = ("--endpoint", "chat", "--request-rate", "100", "--requests", "60", "--output-len", "3", "--processes", "2")
    done = bench("serve", "--url", f"{server.url}/v1/", "--input-len", "4", *flags, "--out", str(tmp_path / "out"))

    assert (done.returncode, done.stderr) == (0, "")
    (level,) = lines_of(tmp_path / "out")
    assert (level["request_rate"], level["requests"], level["output_tokens"]) == (100, 60, 180)
    assert level["seconds"] > 0.3  # 0.6 s on average


def test_what_the_server_refuses_is_said(server: Server) -> None:
    done = bench("serve", "--url", server.url, "--model", "other")

    assert done.returncode == 2
    assert done.stderr.startswith(f"octavo: {server.url}: all requests to warm up failed: 404: the model 'other' does")
    assert done.stderr.count("\n") == 1


class Failing(BaseHTTPRequestHandler):
    """Of four streams one is whole, one refused, one cut, and one ends with an error."""

    numbers: "Iterator[int]"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._answer(200 if found else 404, b'{"data": [{"id": "m", "owned_by": "nobody"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = next(self.numbers) % 4
        if kind == 1:
            return self._answer(500, b'{"error": {"message": "out of luck"}}')
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send({"choices": [{"index": 0, "text": "a"}], "usage": None})
        if kind == 2:
            return None
        if kind == 3:
            self._send({"error": {"message": "the device is gone"}})
        self._send({"choices": [{"index": 0, "text": "b"}]})
        self._send({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
        self._send("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, event: object) -> None:
        data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


@contextmanager
def failing_server() -> Iterator[str]:
    handler = type("Handler", (Failing,), {"numbers": count()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_requests_that_fail_are_counted_by_reason_and_not_measured(tmp_path: Path) -> None:
    with failing_server() as url:
        done = bench("serve", "--url", url, "--concurrency", "1", "--requests", "12", "--out", str(tmp_path / "out"))

    assert (done.returncode, done.stderr) == (1, "")
    (level,) = lines_of(tmp_path / "out")
    assert (level["engine"], level["requests"], level["errors"]) == ("nobody", 12, 9)
    assert (level["input_tokens"], level["output_tokens"]) == (3 * 7, 3 * 2)
    reasons = {
        "500: out of luck": 3,
        "the stream broke off after 1 events": 3,
        "the stream ended with: the device is gone": 3,
    }
    assert level["reasons"] == reasons
    assert all(f"{number} of 12 requests failed: {reason}" in done.stdout for reason, number in reasons.items())


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    done = bench("serve", "--url", "http://127.0.0.1:9")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("octavo: http://127.0.0.1:9 does not answer")
    assert done.stderr.count("\n") == 1


def test_throughput_of_a_workload(tmp_path: Path) -> None:
    flags = ("--device", "sim", "--workload", "single", "--trials", "2")
    done = bench("throughput", *flags, "--out", str(tmp_path / "out"))

    assert (done.returncode, done.stderr) == (0, "")
    started, *trials = lines_of(tmp_path / "out")
    assert started["event"] == "started" and started["seconds"] > 0
    assert [(each["workload"], each["trial"]) for each in trials] == [("single", 0), ("single", 1)]
    for each in trials:
        assert (each["input_tokens"], each["output_tokens"]) == (128, 512)
        assert each["output_tok_s"] == pytest.approx(512 / each["seconds"], rel=0.02)
    assert "single" in done.stdout


def test_latency_of_batches_follows_the_time_of_a_step(tmp_path: Path) -> None:
    flags = ("--device", "sim", "--sim-step-ms", "20", "--input-len", "9", "--output-len", "6")
    done = bench(
        "latency", *flags, "--batch-size", "1,3", "--iterations", "1", "--seed", "5", "--out", str(tmp_path / "out")
    )

    assert (done.returncode, done.stderr) == (0, "")
    started, *sizes = lines_of(tmp_path / "out")
    assert [each["batch_size"] for each in sizes] == [1, 3]
    for each in sizes:
        assert each["ttft_ms_p50"] >= 20 and each["tpot_ms_p50"] >= 20
        assert each["batch_ms_p50"] >= 6 * 20
        assert each["output_tok_s"] <= each["batch_size"] * 50


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("throughput", "/no/such", "--device", "sim"), "octavo: there is no folder or file /no/such"),
        (("throughput", "--device", "sim", "--max-model-len", "99"), "the model takes 99 (--max-model-len)"),
        (("throughput", "--workload", "double"), "'double' is none of single, mixed, saturate, prefill, shared_prefix"),
        (("latency", "--out", "/no/such/file"), "octavo: --out /no/such/file cannot be written"),
        (("serve", "--url", "localhost:8000"), "it must begin with http:// or https://"),
        (("speed",), "octavo: bench measures throughput, latency, serve, not 'speed'"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: tuple[str, ...], sentence: str) -> None:
    done = bench(*arguments)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
