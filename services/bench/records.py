"""What a measurement leaves behind: a JSON line with all that it takes to repeat it, and a row of a table."""

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import octavo
from octavo.services.doctor import cpu_name
from octavo.shared.errors import ConfigError

ASK_S = 20.0  # for git and nvidia-smi


class Records:
    """Adds JSON lines to a file, if one is wanted. Every line carries the same facts of its origin."""

    def __init__(self, out: Path | None, command: Sequence[str], **facts: str | None) -> None:
        """`command`: what was typed. Raises ConfigError if `out` cannot be written."""
        self._facts: dict[str, object] = {name: fact for name, fact in facts.items() if fact}
        self._origin = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine() if out else {},
            "command": shlex.join(command),
        }
        self._stack = ExitStack()
        try:
            self._out = self._stack.enter_context(out.open("a")) if out else None
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, **fields: object) -> None:
        """One line; it is in the file when this returns."""
        if self._out is not None:
            self._out.write(json.dumps(self._facts | fields | self._origin) + "\n")
            self._out.flush()


class Table:
    """Rows on the screen as they come, under one head."""

    def __init__(self, *names: str) -> None:
        self._widths = [max(len(name), 8) for name in names]
        self._print(names)

    def add(self, *cells: str | float) -> None:
        self._print([each if isinstance(each, str) else f"{each:,.{_digits(each)}f}" for each in cells])

    def _print(self, cells: Sequence[str]) -> None:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True)), flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the sorted values lie below; 0 if there are none."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else 0.0


def percentiles_ms(name: str, seconds: Sequence[float], percents: Sequence[int] = (50, 99)) -> dict[str, float]:
    """`ttft_ms_p50` and so on."""
    ordered = sorted(seconds)
    return {f"{name}_ms_p{each}": round(1e3 * percentile(ordered, each), 3) for each in percents}


def machine() -> dict[str, object]:
    """Its processor, its GPUs if it has any, and the versions that speed depends on."""
    found: dict[str, object] = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    if gpus := _ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"):
        counts = Counter(tuple(line.split(", ")) for line in gpus.splitlines())
        found["gpu"] = "; ".join(f"{count} x {', driver '.join(names)}" for names, count in counts.items())
    for package in ("torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> dict[str, str | None]:
    """Facts of this Octavo: the version, and the commit if it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]
    commit = _ask("git", "-C", str(root), "describe", "--always", "--dirty") if (root / ".git").exists() else None
    return {"engine": "octavo", "version": octavo.__version__, "commit": commit}


def _ask(*command: str) -> str | None:
    """What a program prints; None if there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _digits(value: float) -> int:
    return 0 if isinstance(value, int) or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
