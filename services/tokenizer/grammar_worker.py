"""`python -m octavo.services.tokenizer.grammar_worker`: compiles grammars where they can harm nobody.

Its main loop compiles no grammar of a request: it loads xgrammar and the vocabulary once, then forks for each grammar.
A fork costs milliseconds, starts with all that is loaded, and can be limited, killed or crash by itself. When there is
nothing to do, or more than there are lanes, the loop compiles rules that most grammars have: forks start with them.

Grammars that take long must not hold up the others: each gets QUICK_S in one of a few quick lanes. One that needs more
is ended and begun anew in a slow lane, with its whole time, when it is its turn there. That is time of a CPU, so that
a busy machine refuses no grammar that an idle one takes; PATIENCE bounds what that makes on the clock.
"""

import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from octavo.services.tokenizer.grammar_compile import Tokens, Unfit, compile_grammar
from octavo.shared.errors import ErrorInfo, Internal, InvalidRequest, Overloaded, RequestError
from octavo.shared.grammar import (
    GrammarSpec,
    announcement_path,
    grammar_path,
    read_vocabulary,
    vocabulary_path,
    write_atomically,
)
from octavo.shared.process import die_with_parent

QUICK_S = 1.0
NUM_QUICK = 2
NUM_SLOW = 2
PATIENCE = 6.0
"""Times its limit of CPU time, by the clock: what a grammar gets in a slow lane at the most."""
KEEP_S = 120.0
"""A file used within this time is not deleted: a request may be about to need it."""
ANNOUNCE_S = 20.0
READY = b"\n"
"""What is said once, when the worker is able to compile."""


class Limits(msgspec.Struct, frozen=True):
    """Of one grammar, and of the folder of all."""

    compile_s: float = 10.0
    """Of CPU time, in all threads."""
    memory_bytes: int = 2 << 30
    """Beyond what the worker itself has."""
    file_bytes: int = 128 << 20
    folder_bytes: int = 1 << 30
    num_files: int = 4096
    wait_s: float = 60.0
    """For a lane; a grammar that is not begun by then is refused for now."""


class Job(msgspec.Struct):
    """A grammar to compile; what the tokenizer sends, a line of JSON each."""

    key: str
    spec: GrammarSpec


class Answer(msgspec.Struct):
    """What the tokenizer gets back, a line of JSON each."""

    key: str
    error: ErrorInfo | None = None


class _Lane:
    """A forked process that compiles one grammar."""

    def __init__(self, job: Job, pid: int, pipe: int, limit_s: float, patience_s: float) -> None:
        self.job, self.pid, self.pipe, self.limit_s = job, pid, pipe, limit_s
        self.deadline = time.monotonic() + limit_s
        self.last_deadline = self.deadline + patience_s
        self.is_late = False

    def check(self, now: float) -> None:
        """At the deadline: end it, or move the deadline by the CPU time that it has not had yet."""
        if now < self.deadline or self.is_late:
            return
        left_s = self.limit_s - _cpu_s(self.pid)
        if left_s > 0.0 and now < self.last_deadline:
            self.deadline = min(now + max(left_s, 0.05), self.last_deadline)
        else:
            self.is_late = True
            os.kill(self.pid, signal.SIGKILL)  # its pipe ends then


def _cpu_s(pid: int) -> float:
    """The CPU time of a process that has not been waited for, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Worker:
    """Takes jobs from standard input, runs them in lanes, writes answers to standard output."""

    def __init__(self, folder: Path, digest: str, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._tokens = Tokens(read_vocabulary(vocabulary_path(folder, digest)))
        self._base_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._input = bytearray()
        self._new: deque[tuple[Job, float]] = deque()
        self._slow: deque[tuple[Job, float]] = deque()
        self._quick_lanes: list[_Lane] = []
        self._slow_lanes: list[_Lane] = []

    def turn(self) -> bool:
        """Wait for something to do and do it; False at the end of the input."""
        lanes = self._quick_lanes + self._slow_lanes
        deadlines = [lane.deadline for lane in lanes if not lane.is_late]
        deadlines += [queue[0][1] + self._limits.wait_s for queue in (self._new, self._slow) if queue]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        may_warm_up = self._tokens.is_cold and bool(self._new or self._slow or not lanes)
        found = self._selector.select(0.0 if may_warm_up else timeout)
        if may_warm_up and not found:
            self._tokens.warm_up()
        for key, _ in found:
            if key.data is not None:
                self._finish(key.data)
            elif not self._read():
                return False
        now = time.monotonic()
        for lane in self._quick_lanes + self._slow_lanes:
            lane.check(now)
        self._refuse_what_waited_too_long(now)
        self._begin()
        return True

    def _read(self) -> bool:
        data = os.read(0, 1 << 20)
        self._input += data
        *lines, rest = bytes(self._input).split(b"\n") if b"\n" in data else [bytes(self._input)]
        self._input = bytearray(rest)
        self._new.extend((msgspec.json.decode(line, type=Job), time.monotonic()) for line in lines)
        return bool(data)

    def _begin(self) -> None:
        limit_s = self._limits.compile_s
        while self._new and len(self._quick_lanes) < NUM_QUICK:
            self._quick_lanes.append(self._fork(self._new.popleft()[0], min(QUICK_S, limit_s), 0.0))
        while self._slow and len(self._slow_lanes) < NUM_SLOW:
            self._slow_lanes.append(self._fork(self._slow.popleft()[0], limit_s, (PATIENCE - 1.0) * limit_s))

    def _fork(self, job: Job, limit_s: float, patience_s: float) -> _Lane:
        reader, writer = os.pipe()
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _compile_and_exit(job, parent, writer, self._folder, self._tokens, self._base_bytes, self._limits)
        os.close(writer)
        lane = _Lane(job, pid, reader, limit_s, patience_s)
        self._selector.register(reader, selectors.EVENT_READ, lane)
        return lane

    def _finish(self, lane: _Lane) -> None:
        """A lane's process has said what came of it, or has died."""
        self._selector.unregister(lane.pipe)
        told = os.read(lane.pipe, 65536)
        os.close(lane.pipe)
        _, status = os.waitpid(lane.pid, 0)
        was_quick = lane in self._quick_lanes
        (self._quick_lanes if was_quick else self._slow_lanes).remove(lane)
        error: RequestError | None = None
        if told:
            _answer(msgspec.json.decode(told, type=Answer))
            return
        if lane.is_late:
            if was_quick and self._limits.compile_s > QUICK_S:
                self._slow.append((lane.job, time.monotonic()))
                return
            limit = f"{self._limits.compile_s:g} s of CPU time to compile (--max-grammar-compile-s)"
            error = InvalidRequest(f"the grammar took longer than {limit}")
        else:
            code = os.waitstatus_to_exitcode(status)
            sentence = f"the grammar is too much for the compiler, which ended with code {code}"
            error = InvalidRequest(f"{sentence}; it may take {_memory(self._limits)}")
        _answer(Answer(lane.job.key, error.info()))

    def _refuse_what_waited_too_long(self, now: float) -> None:
        for queue in (self._new, self._slow):
            while queue and now >= queue[0][1] + self._limits.wait_s:
                job, _ = queue.popleft()
                error = Overloaded("too many grammars wait to be compiled", retry_after_s=10)
                _answer(Answer(job.key, error.info()))


def _answer(answer: Answer) -> None:
    os.write(1, msgspec.json.encode(answer) + b"\n")


def _compile_and_exit(
    job: Job, parent: int, pipe: int, folder: Path, tokens: Tokens, base_bytes: int, limits: Limits
) -> None:
    """In a process of its own: compile, write, announce, and say so. Never returns."""
    error: RequestError | None = None
    try:
        die_with_parent(parent)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (base_bytes + limits.memory_bytes,) * 2)
        data = compile_grammar(job.spec, tokens)
        if len(data) > limits.file_bytes:
            raise Unfit(f"the compiled grammar has {len(data)} bytes; at most {limits.file_bytes} bytes are kept")
        if not make_room(folder, len(data), limits):
            raise Overloaded("too many grammars are in use", retry_after_s=10)
        write_atomically(grammar_path(folder, job.key), data)
        _announce(folder, job.key)
    except Unfit as unfit:
        error = InvalidRequest(str(unfit))
    except MemoryError:
        error = InvalidRequest(f"the grammar takes more than {_memory(limits)} to compile")
    except RecursionError:
        error = InvalidRequest("the grammar is nested too deeply")
    except RequestError as refused:
        error = refused
    except OSError as failed:
        error = Internal(f"the compiled grammar could not be written: {failed.strerror}")
    except BaseException as unknown:
        error = Internal(f"the grammar could not be compiled: {type(unknown).__name__}")
    os.write(pipe, msgspec.json.encode(Answer(job.key, None if error is None else error.info())))
    os._exit(0)


def _memory(limits: Limits) -> str:
    return f"{limits.memory_bytes >> 20} MiB (--max-grammar-compile-mib)"


def make_room(folder: Path, num_bytes: int, limits: Limits) -> bool:
    """Delete the grammars used least recently until there is room for one more; False where all are in use."""
    found = sorted(_files(folder))
    num_files, total = len(found) + 1, sum(size for _, size, _ in found) + num_bytes
    for used, size, path in found:
        if total <= limits.folder_bytes and num_files <= limits.num_files:
            return True
        if time.time() - used < KEEP_S:
            return False
        Path(path).unlink(missing_ok=True)
        num_files, total = num_files - 1, total - size
    return True


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    for entry in os.scandir(grammar_path(folder, "").parent):
        try:
            if entry.name.endswith(".json"):
                found = entry.stat()
                yield found.st_mtime, found.st_size, entry.path
        except FileNotFoundError:
            continue  # another tokenizer's worker deleted it


def _announce(folder: Path, key: str) -> None:
    """Have the executor load a grammar before a request needs it. It loads it at need too, so this may fail."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(ANNOUNCE_S)
            link.connect(str(announcement_path(folder)))
            link.sendall(key.encode())
            link.recv(1)
    except OSError:
        return


def main(parent: str, folder: str, digest: str, limits: str) -> None:
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started us ends us
    os.nice(5)  # what serves is more urgent
    worker = _Worker(Path(folder), digest, msgspec.json.decode(limits, type=Limits))
    os.write(1, READY)
    while worker.turn():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
