"""Grammars for the tokenizer's loop: asked for here, compiled by a process of their own, found in the runtime folder.

Nothing here waits. A grammar that has been compiled, by whichever tokenizer, is there at once.
"""

import importlib.util
import os
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from octavo.services.tokenizer.grammar_worker import READY, Answer, Job, Limits
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import Internal, InvalidRequest, Overloaded, RequestError, from_info
from octavo.shared.grammar import (
    GrammarSpec,
    GrammarVocabulary,
    grammar_key,
    grammar_path,
    grammars_folder,
    vocabulary_path,
    write_atomically,
)

MAX_PENDING = 64
MAX_REFUSED = 1024
REFUSED_S = 60.0
"""How long it is remembered what is wrong with a grammar; one that took too long may be quicker then."""
MAX_DEATHS = 3
"""Of the worker, one after the other, without an answer."""
_PIPE_BYTES = 1 << 20


class Compiler:
    """Turns grammars into keys under which an executor finds them compiled."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, width: int, limits: Limits | None = None) -> None:
        """folder: the runtime folder. width: of the model's logits, which may be more than the vocabulary has.

        Raises InvalidRequest where no grammar can be used at all; another model could.
        """
        if importlib.util.find_spec("xgrammar") is None:
            raise InvalidRequest("structured output is not installed on this server: pip install 'octavo[grammar]'")
        self._folder, self._limits = folder, limits or Limits()
        tokens = GrammarVocabulary.of(vocabulary.pieces, vocabulary.special_ids, vocabulary.eos_ids, width)
        self._digest = tokens.digest()
        grammars_folder(folder)
        write_atomically(vocabulary_path(folder, self._digest), msgspec.msgpack.encode(tokens))
        self._pending: OrderedDict[str, Job] = OrderedDict()
        self._refused: OrderedDict[str, tuple[float, RequestError]] = OrderedDict()
        self._answers: list[tuple[str, RequestError | None]] = []
        self._worker: subprocess.Popen[bytes] | None = None
        self._num_deaths = 0
        self._unsent, self._unread = bytearray(), b""
        self._epoll = select.epoll()

    @property
    def fd(self) -> int:
        """Readable when `poll` has something to return; the same for as long as this lives."""
        return self._epoll.fileno()

    def request(self, spec: GrammarSpec) -> tuple[str, bool]:
        """The key of a grammar, and whether it is compiled; if not, `poll` tells when it is.

        Raises InvalidRequest for a grammar found wrong lately, Overloaded while too many wait.
        """
        key = grammar_key(spec, self._digest)
        if key in self._pending:
            return key, False
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() < refused[0]:
            raise refused[1]
        if self.keep([key]):
            return key, True
        if len(self._pending) >= MAX_PENDING:
            raise Overloaded(f"{MAX_PENDING} grammars wait to be compiled; no more are taken", retry_after_s=2)
        job = self._pending[key] = Job(key, spec)
        if self._worker is None:
            self._start()
        else:
            self._send(job)
        return key, False

    def poll(self) -> list[tuple[str, RequestError | None]]:
        """The grammars that have been compiled since the last call, each with what is wrong with it."""
        if self._worker is not None:
            self._read(self._worker)
            self._flush()
        answers, self._answers = self._answers, []
        return answers

    def keep(self, keys: Iterable[str]) -> bool:
        """Say that these are in use, so that they are not deleted for others; False if one is not there.

        Of requests that wait or run, so that they can go on after their executor died: every minute or so.
        """
        are_all_there = True
        for key in keys:
            try:
                os.utime(grammar_path(self._folder, key))
            except FileNotFoundError:
                are_all_there = False
        return are_all_there

    def close(self) -> None:
        if self._worker is not None:
            self._end(self._worker)
        self._epoll.close()

    def _start(self) -> None:
        """A worker, which gets everything that is pending."""
        command = [sys.executable, "-P", "-m", "octavo.services.tokenizer.grammar_worker"]
        limits = msgspec.json.encode(self._limits).decode()
        # Its forks are safe while it has one thread.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            [*command, str(os.getpid()), str(self._folder), self._digest, limits],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0, pipesize=_PIPE_BYTES,
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        os.set_blocking(worker.stdin.fileno(), False)
        os.set_blocking(worker.stdout.fileno(), False)
        self._epoll.register(worker.stdout.fileno(), select.EPOLLIN)
        self._worker, self._unsent, self._unread = worker, bytearray(), b""
        for job in self._pending.values():
            self._send(job)

    def _send(self, job: Job) -> None:
        self._unsent += msgspec.json.encode(job) + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Write what the pipe takes; the rest goes when the worker has said something, or at the next poll."""
        worker = self._worker
        while self._unsent and worker is not None and worker.stdin is not None:
            try:
                del self._unsent[: os.write(worker.stdin.fileno(), self._unsent)]
            except (BlockingIOError, BrokenPipeError):
                return  # of its death we read

    def _read(self, worker: "subprocess.Popen[bytes]") -> None:
        assert worker.stdout is not None
        while True:
            try:
                data = os.read(worker.stdout.fileno(), 65536)
            except BlockingIOError:
                return
            if not data:
                self._replace(worker)
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                if line != READY.rstrip():
                    self._take(msgspec.json.decode(line, type=Answer))

    def _take(self, answer: Answer) -> None:
        self._num_deaths = 0
        if self._pending.pop(answer.key, None) is None:
            return
        error = None if answer.error is None else from_info(answer.error)
        if isinstance(error, InvalidRequest):
            self._refused[answer.key] = (time.monotonic() + REFUSED_S, error)
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
        self._answers.append((answer.key, error))

    def _replace(self, worker: "subprocess.Popen[bytes]") -> None:
        """The worker has died: start another if anything is to be compiled."""
        self._end(worker)
        self._num_deaths += 1
        if self._pending and self._num_deaths >= MAX_DEATHS:
            error = Internal("the compiler of grammars does not run; see the server's log")
            self._answers.extend((key, error) for key in self._pending)
            self._pending.clear()
            self._num_deaths = 0
        if self._pending:
            self._start()

    def _end(self, worker: "subprocess.Popen[bytes]") -> None:
        assert worker.stdin is not None and worker.stdout is not None
        self._epoll.unregister(worker.stdout.fileno())
        worker.kill()
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
        self._worker = None


def about(error: RequestError, field: str) -> RequestError:
    """The same error, as one of a request's field: `response_format: …`."""
    return type(error)(f"{field}: {error.message}", field, error.code, error.retry_after_s)
