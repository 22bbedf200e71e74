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
from octavo.shared.process import StopFlag, Stopwatch, keep_what_is_loaded, report
from octavo.shared.pulse import Pulse
from octavo.shared.transport import HEARTBEAT_S, Link, executor_endpoint, new_context, wait

log = logging.getLogger(__name__)

MOST_LAUNCHED = 3  # steps on the device: one that runs, and those behind it; as many as a scheduler sends ahead


class Launched(Protocol):
    """A step that has begun."""

    @property
    def is_done(self) -> bool: ...

    def result(self) -> StepResult:
        """Waits for it."""
        ...


class RunsSteps(Protocol):
    """What an engine is to this process."""

    info: ModelInfo

    def reset(self) -> None: ...

    def launch(self, step: Step) -> Launched:
        """Begin a step; on a CPU it is done then."""
        ...


def serve(config: Config, folder: Path, index: int) -> None:
    """Load the model, then run steps until SIGTERM."""
    stop, watch = StopFlag(), Stopwatch()
    pulse = Pulse(folder, "executor", index)  # before loading: what a predecessor left behind must not count
    engine = load_engine(config, watch, folder)
    link: Link[Message] = Link(new_context(), executor_endpoint(folder), TO_EXECUTOR)
    loop = _Loop(engine, link, os.urandom(8))
    keep_what_is_loaded()
    while not stop.is_set:
        loop.turn()
        now = time.monotonic()
        if pulse.is_due(now):
            loop.greet()
            pulse.beat(loop.epoch > 0, loop.num_steps)
    pulse.end()


class _Loop:
    """One turn: take in messages, launch the steps that have come, answer those that are done."""

    def __init__(self, engine: RunsSteps, link: Link[Message], boot: bytes) -> None:
        self._engine, self._link, self._boot = engine, link, boot
        self._steps: deque[Step] = deque()
        self._launched: deque[tuple[int, Launched]] = deque()  # each under its step's number
        self.epoch = 0
        self.num_steps = 0

    def turn(self) -> None:
        # While the device works, its end is asked for again and again: no wait is short enough for it.
        if not self._steps and not self._launched:
            wait([self._link], HEARTBEAT_S)
        for message in self._link.receive():
            if isinstance(message, Reset):
                self.epoch = message.epoch
                self._steps.clear()
                self._launched.clear()
                self._engine.reset()
            elif isinstance(message, Step) and message.epoch == self.epoch:
                self._steps.append(message)
        number = 0
        try:
            if self._steps and len(self._launched) < MOST_LAUNCHED:
                step = self._steps.popleft()
                number = step.number
                self._launched.append((number, self._engine.launch(step)))
                self.num_steps += 1
            if self._launched:
                number, launched = self._launched[0]
                if launched.is_done:
                    self._launched.popleft()
                    self._link.send(launched.result())
        except Exception as error:
            self._fail(number, error)

    def greet(self) -> None:
        """Say that we are here: a heartbeat to a scheduler that knows us, a beginning to one that does not."""
        self._link.send(ExecutorReady(self._boot, self._engine.info))

    def _fail(self, number: int, error: Exception) -> None:
        # What the engine remembers may be half changed: the process ends, and the scheduler starts over.
        reason = f"{type(error).__name__}: {error}"
        log.exception("step failed", extra={"step": number})
        report("failed", role="executor", reason=reason.partition("\n")[0])
        self._link.send(StepFailed(self.epoch, number, reason))
        time.sleep(0.1)  # for the message to leave: the socket does not linger
        sys.exit(1)
