"""The executor's loop, with an engine whose steps fail."""

import logging
import os
from dataclasses import dataclass
from typing import cast

import pytest

from octavo.services.executor.service import _Loop
from octavo.shared.messages import Message, ModelInfo, Reset, Step, StepFailed, StepResult
from octavo.shared.transport import Link

INFO = ModelInfo(10, 16, 4, 4, 2, 8, "cuda", "bfloat16")


class FakeLink:
    def __init__(self, messages: list[Message]) -> None:
        self.messages, self.sent = messages, list[Message]()
        self.socket, writing = os.pipe()  # readable at once
        os.close(writing)

    def receive(self) -> list[Message]:
        taken, self.messages = self.messages, []
        return taken

    def send(self, message: Message) -> None:
        self.sent.append(message)


@dataclass
class Late:
    """A step on a device that is found to have failed when it is asked for, or at its end."""

    number: int
    engine: "FaultyEngine"

    @property
    def is_done(self) -> bool:
        if self.number in self.engine.fails_when_asked:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
        return self.engine.is_idle

    def result(self) -> StepResult:
        if self.number in self.engine.fails_at_its_end:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return StepResult(7, self.number, b"", b"")


class FaultyEngine:
    info = INFO

    def __init__(self, launching: int = 0, asked: int = 0, at_end: int = 0) -> None:
        self.fails_when_launched, self.fails_when_asked, self.fails_at_its_end = {launching}, {asked}, {at_end}
        self.is_idle = False

    def reset(self) -> None:
        pass

    def launch(self, step: Step) -> Late:
        self.is_idle = step.number == 3  # the first step ends when the third is launched
        if step.number in self.fails_when_launched:
            raise ValueError("no such slot")
        return Late(step.number, self)


@pytest.mark.parametrize(
    "engine, number, reason",
    [
        (FaultyEngine(launching=3), 3, "ValueError: no such slot"),
        (FaultyEngine(asked=2), 2, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (FaultyEngine(at_end=2), 2, "RuntimeError: CUDA error: device-side assert triggered"),
    ],
)
def test_a_failed_step_ends_the_process_under_its_own_number(
    engine: FaultyEngine,
    number: int,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    link = FakeLink([Reset(7), Step(7, 2), Step(7, 3)])
    loop = _Loop(engine, cast("Link[Message]", link), b"boot")

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        for _ in range(4):
            loop.turn()

    os.close(link.socket)
    assert ended.value.code == 1
    last = link.sent[-1]
    assert isinstance(last, StepFailed) and (last.epoch, last.number) == (7, number)
    assert last.reason.startswith(reason)
    assert [vars(record)["step"] for record in caplog.records] == [number]
    assert caplog.records[0].exc_info is not None
    assert reason in capsys.readouterr().out
