"""`octavo batch`: results against real services, resumption, and servers that put requests off."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from benchmarks.streams import DEFAULT_VOCAB
from tests.tools.server import Server

from octavo.shared.oracle import expected_tokens

OCTAVO = str(Path(sys.executable).parent / "octavo")
TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def server(sim_server: Server) -> Server:
    return sim_server


def batch(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """From in.jsonl to out.jsonl of a folder."""
    files = ("-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"))
    return subprocess.run([OCTAVO, "batch", *files, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def request(name: str, prompt: list[int], **more: object) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True, **more}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


def write(folder: Path, *lines: dict[str, Any] | str) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "in.jsonl").write_text("".join(f"{text}\n" for text in texts))


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_every_request_is_answered_once_however_often_it_is_stopped(server: Server, tmp_path: Path) -> None:
    prompts = {f"request {number}": [5, 6, number] for number in range(100)}
    write(tmp_path, *(request(name, prompt) for name, prompt in prompts.items()))
    out = tmp_path / "out.jsonl"

    done = batch(tmp_path, "--url", server.url)
    assert (done.returncode, done.stdout) == (0, f"100 requests answered, 0 failed; see {out}\n")
    assert "100/100" in done.stderr
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:40]) + lines[40][:-30])  # it was killed while it wrote
    again = batch(tmp_path, "--url", server.url + "/v1/", "--concurrency", "3", "--no-progress")

    assert (again.returncode, again.stderr) == (0, "")
    assert out.read_bytes().startswith(b"".join(lines[:40]))
    by_name = {each["custom_id"]: each for each in results(tmp_path)}
    assert len(results(tmp_path)) == len(by_name) == 100
    for name, prompt in prompts.items():
        response = by_name[name]["response"]
        assert (response["status_code"], by_name[name]["error"]) == (200, None)
        assert response["body"]["choices"][0]["token_ids"] == expected_tokens(prompt, 6, DEFAULT_VOCAB)
        assert response["request_id"] and by_name[name]["id"].startswith("batch_req_")


def test_bad_lines_and_refused_requests_are_counted_and_kept(server: Server, tmp_path: Path) -> None:
    good = request("good", [1, 2])
    write(
        tmp_path, good, "no json", "", request("good", [3]), {**good, "custom_id": "a", "method": "GET"},
        {**good, "custom_id": "b", "url": "http://example.com"}, request("c", [1], stream=True),
        {"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": 3},
        request("refused", [1], max_tokens=0),
    )  # fmt: skip

    first = batch(tmp_path, "--url", server.url)
    second = batch(tmp_path, "--url", server.url)

    assert (first.returncode, second.returncode) == (7, 7)
    assert first.stdout == second.stdout
    errors = {each["error"]["line"]: each["error"]["message"] for each in results(tmp_path) if each["error"]}
    assert sorted(errors) == [2, 4, 5, 6, 7, 8]
    assert errors[2].startswith("line 2: JSON is malformed")
    assert errors[4] == "line 4: custom_id 'good' is that of line 1 too"
    assert "only POST" in errors[5] and "/v1/chat/completions" in errors[6] and "stream" in errors[7]
    (refused,) = [each for each in results(tmp_path) if each["custom_id"] == "refused"]
    assert refused["response"]["status_code"] == 400
    assert "max_tokens" in refused["response"]["body"]["error"]["message"]


def test_without_a_server_the_batch_serves_the_model_itself(tmp_path: Path) -> None:
    write(tmp_path, request("only", [8, 9]))
    done = batch(tmp_path, "--device", "sim", "--max-model-len", "64")
    assert done.returncode == 0, done.stderr
    [result] = results(tmp_path)
    assert result["response"]["body"]["choices"][0]["token_ids"] == expected_tokens([8, 9], 6, DEFAULT_VOCAB)


class Moody(BaseHTTPRequestHandler):
    """Puts off the first request, loses the second, breaks off the third; answers what the command's test expects."""

    protocol_version = "HTTP/1.1"
    numbers = count()

    def do_GET(self) -> None:
        self._send(200, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = next(self.numbers)
        if number == 0:
            self._send(429, b'{"error": {"message": "later"}}')
        elif number == 1:
            self.close_connection = True
        elif number == 2:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"half')
            self.close_connection = True
        else:
            self._send(200, b'{\n "id": "own",\n "echo": ' + body + b"\n}")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_put_off_or_lost_is_sent_again(moody: str, tmp_path: Path) -> None:
    write(tmp_path, request("only", [1]))

    stopped = batch(tmp_path, "--url", moody, "--retries", "1", "--no-progress")
    assert stopped.returncode == 101
    assert stopped.stderr.startswith(f"octavo: {moody} does not answer (")
    assert stopped.stderr.count("\n") == 1
    done = batch(tmp_path, "--url", moody, "--retries", "1", "--no-progress")

    assert (done.returncode, done.stderr) == (0, "")
    [result] = results(tmp_path)
    assert result["response"]["request_id"] == "own"
    assert result["response"]["body"]["echo"]["prompt"] == [1]


def test_what_cannot_work_is_said_in_one_sentence(server: Server, tmp_path: Path) -> None:
    write(tmp_path, request("only", [1]))
    (tmp_path / "other").write_text("something else\n")
    cases = {
        ("--url", "http://127.0.0.1:9"): "http://127.0.0.1:9 does not answer",
        ("--url", "nowhere"): "--url nowhere: it must begin with http:// or https://",
        ("--url", server.url, "model"): "model: beside --url no model",
        ("--concurrency", "0", "--url", server.url): "--concurrency 0: it must be 1 or more",
        ("-i", "/no/such/file", "--url", server.url): "/no/such/file: No such file or directory",
        ("-o", str(tmp_path / "other"), "--url", server.url): f"{tmp_path}/other, line 1: this is no result",
        ("--max-model-length", "8"): "there is no --max-model-length: the nearest is --max-model-len",
    }
    for arguments, sentence in cases.items():
        done = batch(tmp_path, "--no-progress", *arguments)
        assert (done.returncode, done.stdout) == (101, "")
        assert done.stderr.startswith(f"octavo: {sentence}"), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "other").read_text() == "something else\n"
