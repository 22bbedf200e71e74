"""The executor process: steps in, tokens out."""

import logging
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from octavo.services.executor.load import load_engine
from octavo.shared.config import Config
from octavo.shared.messages import (
    TO_EXECUTOR,
    ExecutorReady,
    Message,
    ModelInfo,
    Reset,
    Step,
    StepFailed,
    StepResult,
)
from octavo.shared.process import Pulse, StopFlag, Stopwatch
from octavo.shared.transport import HEARTBEAT_S, Link, executor_endpoint, new_context, wait

log = logging.getLogger(__name__)


class RunsSteps(Protocol):
    """What Engine and SimEngine are to this process."""

    info: ModelInfo

    def reset(self) -> None: ...

    def run(self, step: Step) -> StepResult: ...


def serve(config: Config, folder: Path) -> None:
    """Load the model, then run steps until SIGTERM."""
    stop, watch = StopFlag(), Stopwatch()
    pulse = Pulse(folder, "executor")  # before loading: what a predecessor left behind must not count
    engine = load_engine(config, watch)
    link: Link[Message] = Link(new_context(), executor_endpoint(folder), TO_EXECUTOR)
    loop = _Loop(engine, link, os.urandom(8))
    while not stop.is_set:
        loop.turn()
        now = time.monotonic()
        if pulse.is_due(now):
            loop.greet()
            pulse.beat(is_ready=loop.epoch > 0)
    pulse.end()


class _Loop:
    """One turn: take in messages, run the oldest step, answer it."""

    def __init__(self, engine: RunsSteps, link: Link[Message], boot: bytes) -> None:
        self._engine, self._link, self._boot = engine, link, boot
        self._steps: deque[Step] = deque()
        self.epoch = 0

    def turn(self) -> None:
        if not self._steps:
            wait([self._link], HEARTBEAT_S)
        for message in self._link.receive():
            if isinstance(message, Reset):
                self.epoch = message.epoch
                self._steps.clear()
                self._engine.reset()
            elif isinstance(message, Step) and message.epoch == self.epoch:
                self._steps.append(message)
        if self._steps:
            self._run(self._steps.popleft())

    def greet(self) -> None:
        """Say that we are here: a heartbeat to a scheduler that knows us, a beginning to one that does not."""
        self._link.send(ExecutorReady(self._boot, self._engine.info))

    def _run(self, step: Step) -> None:
        try:
            result = self._engine.run(step)
        except Exception as error:
            # What the engine remembers may be half changed: the process ends, and the scheduler starts over.
            log.exception("step failed", extra={"step": step.number})
            self._link.send(StepFailed(step.epoch, step.number, f"{type(error).__name__}: {error}"))
            time.sleep(0.1)  # for the message to leave: the socket does not linger
            sys.exit(1)
        self._link.send(result)
