"""`octavo doctor`: what this machine has, what would be used, and what is missing, in plain words."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

from octavo.shared.config import parse
from octavo.shared.errors import ModelError
from octavo.shared.model_files import locate

PACKAGES = (
    "torch",
    "aiohttp",
    "tokenizers",
    "safetensors",
    "gguf",
    "jinja2",
    "pyzmq",
    "msgspec",
    "prometheus-client",
)


def doctor(arguments: Sequence[str]) -> int:
    """Print the report; the exit code is 1 if something needed is missing."""
    config = parse(arguments, "octavo doctor", "What `octavo serve` with the same flags would find and use.")
    problems: list[str] = []
    _line("machine", f"{cpu_name()}, {os.cpu_count()} cores, {_memory_gib():.1f} GiB memory")
    _line("python", f"{platform.python_version()} at {sys.executable}")
    for name in PACKAGES:
        version = _version(name)
        _line(name, version or "missing")
        if version is None:
            problems.append(f"{name} is not installed: pip install 'octavo[serve]'")
    device = {} if _version("torch") is None else _probe_device()
    if device:
        _line("device", f"{device['name']}; `--device {config.device}` would run on {device['device']}")
        _line("dtype", f"{device['dtype']} for a model of 16 bits")
    try:
        _line("model", str(locate(config.model).path))
    except ModelError as error:
        _line("model", "missing")
        problems.append(str(error))
    for problem in problems:
        print(f"\nProblem: {problem}")
    if not problems:
        print("\nNothing is missing: `octavo serve` can start.")
    return 1 if problems else 0


def _line(name: str, what: str) -> None:
    print(f"{name:<18} {what}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe_device() -> dict[str, str]:
    """Asked of the executor's own code in a process of its own, so that this one needs no torch."""
    command = [sys.executable, "-P", "-m", "octavo.services.executor.probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def cpu_name() -> str:
    """As the machine calls its processor."""
    with open("/proc/cpuinfo") as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
