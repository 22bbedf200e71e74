"""Pulses: what health checks and gateways learn of a process from its file."""

import os
import time
from pathlib import Path

import pytest

from octavo.shared.errors import ConfigError
from octavo.shared.pulse import FRESH_S, KEPT_S, Pulse, health, is_alive, pulse_path, read_pulses


def grow_old(folder: Path, role: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(pulse_path(folder, role, 0), (then, then))


def test_a_process_is_alive_once_it_is_ready_and_until_it_is_silent(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, "tokenizer", 1)
    assert not is_alive(tmp_path, "tokenizer")
    pulse.beat(is_ready=True)
    assert is_alive(tmp_path, "tokenizer") and is_alive(tmp_path, "tokenizer-1")
    assert not is_alive(tmp_path, "tokenizer-0") and not is_alive(tmp_path, "scheduler")
    assert (health(["tokenizer", str(tmp_path)]), health(["scheduler", str(tmp_path)])) == (0, 1)
    pulse.beat(is_ready=False)
    assert not is_alive(tmp_path, "tokenizer")
    pulse.end()
    assert list(tmp_path.iterdir()) == []


def test_a_silent_process_is_neither_alive_nor_shown(tmp_path: Path) -> None:
    Pulse(tmp_path, "scheduler").beat(is_ready=True)
    grow_old(tmp_path, "scheduler", FRESH_S + 1)
    assert not is_alive(tmp_path, "scheduler")
    assert list(read_pulses(tmp_path)) == []


def test_successors_of_crashed_processes_count_restarts(tmp_path: Path) -> None:
    for expected in range(3):
        Pulse(tmp_path, "executor")
        (vitals,) = read_pulses(tmp_path)
        assert vitals.num_restarts == expected and not vitals.is_ready
    Pulse(tmp_path, "executor").end()  # this one was told to end
    Pulse(tmp_path, "executor")
    assert [vitals.num_restarts for vitals in read_pulses(tmp_path)] == [0]


def test_a_process_says_what_it_costs(tmp_path: Path) -> None:
    before = time.process_time()
    Pulse(tmp_path, "gateway", 2).beat(is_ready=True, num_steps=5, delay_s=0.5)
    (vitals,) = read_pulses(tmp_path)
    assert before <= vitals.cpu_s <= time.process_time()
    assert 1_000_000 < vitals.resident_bytes < 64 * 2**30
    assert time.time() - 3600 < vitals.started_s < time.time()
    assert (vitals.role, vitals.index, vitals.num_steps, vitals.delay_s) == ("gateway", 2, 5, 0.5)


def test_files_of_long_ago_and_broken_ones_do_no_harm(tmp_path: Path) -> None:
    Pulse(tmp_path, "tokenizer")
    grow_old(tmp_path, "tokenizer", KEPT_S + 1)
    (tmp_path / "broken.pulse").write_bytes(b'{"role": "g')
    (tmp_path / "other.pulse").write_bytes(b"\xff\xfe")
    Pulse(tmp_path, "scheduler")
    assert [vitals.role for vitals in read_pulses(tmp_path)] == ["scheduler"]
    assert not pulse_path(tmp_path, "tokenizer", 0).exists()


def test_a_wrong_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="usage"):
        health(["gateway"])
