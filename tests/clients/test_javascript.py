"""The clients that are written in JavaScript, by node and npm. The packages are kept in pytest's cache."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.tools.server import Server

HERE = Path(__file__).parent
INSTALL_S = 300.0
RUN_S = 600.0

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm"),
]


@pytest.mark.parametrize(("package", "script"), [
    ("openai", "openai_client.mjs"),
    ("@anthropic-ai/sdk", "anthropic_client.mjs"),
])  # fmt: skip
def test_its_examples(
    package: str, script: str, server: Server, key: str, model: str, pytestconfig: pytest.Config
) -> None:
    folder = pytestconfig.cache.mkdir(f"npm-{Path(script).stem}")
    if not (folder / "node_modules" / package).exists():
        _install(package, folder)
    shutil.copy(HERE / script, folder)  # a module looks for packages beside itself
    done = subprocess.run(
        ["node", "--test", script], cwd=folder, env=os.environ | {"URL": server.url, "API_KEY": key, "MODEL": model},
        capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def _install(package: str, folder: Path) -> None:
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {package}: {done.stderr.strip()[-300:]}")
