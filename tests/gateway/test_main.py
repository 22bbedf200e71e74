"""The gateway as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tools.fake_tokenizer import DEADLINE_S

COMMAND = [sys.executable, "-m", "octavo.services.gateway"]


@pytest.fixture
def process(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    flags = ["--index", "3", "--port", "0", "--runtime-dir", str(tmp_path)]
    with subprocess.Popen([*COMMAND, *flags], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        yield process
        process.kill()


def test_the_process_reports_its_address_serves_and_ends_with_0(
    process: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert process.stdout is not None
    reported = json.loads(process.stdout.readline())
    assert reported["stage"] == "gateway"
    with urllib.request.urlopen(f"{reported['address']}/livez", timeout=DEADLINE_S) as response:
        assert response.status == 200
    assert (tmp_path / "gateway-3.sock").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_a_wrong_setting_ends_the_process_with_a_sentence() -> None:
    ended = subprocess.run([*COMMAND, "--port", "0"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2
    assert ended.stderr == "octavo gateway: --runtime-dir is needed: the folder in which the services meet\n"
