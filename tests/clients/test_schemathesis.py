"""schemathesis against a whole server: no 5xx, and no answer that is not as /openapi.json describes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tools.server import running

COMMAND = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
CASES = int(os.environ.get("CASES") or 1000)  # of each route
TIMEOUT_S = 7200.0
KEY = "sk-schemathesis"

pytestmark = [
    pytest.mark.schemas,
    pytest.mark.skipif(COMMAND is None, reason="needs schemathesis: pip install schemathesis"),
]


def test_no_request_breaks_the_server_or_its_document() -> None:
    # Not asked: whether all that the schema allows is taken. It cannot say which models there are, nor that the
    # prompts of one request are of one kind.
    checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    limits = ["--phases", "examples,coverage,fuzzing", "-n", str(CASES), "--generation-database", "none"]
    with running("--device", "sim", "--max-model-len", "256", environment={"OCTAVO_API_KEY": KEY}) as server:
        command = [str(COMMAND), "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
        done = subprocess.run([*command, *checks, *limits], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
        assert "request failed" not in server.errors
