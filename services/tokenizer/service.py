"""The tokenizer process: sockets around core.py. Any number of them may run; they come and go at any time."""

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from octavo.services.tokenizer.compiling import Compiling, limits_of
from octavo.services.tokenizer.core import ASK_AGAIN_S, Outbox, TokenizerCore
from octavo.services.tokenizer.workshop import load_workshop
from octavo.shared.config import Config
from octavo.shared.messages import (
    TO_TOKENIZER_FROM_GATEWAY,
    TO_TOKENIZER_FROM_SCHEDULER,
    CancelCall,
    Generate,
    Heartbeat,
    Join,
    Message,
    Serving,
)
from octavo.shared.process import StopFlag, Stopwatch, keep_what_is_loaded
from octavo.shared.pulse import Pulse
from octavo.shared.transport import (
    HEARTBEAT_S,
    SILENCE_S,
    Link,
    gateway_endpoint,
    new_context,
    scheduler_endpoint,
    wait,
)

FRAMES_PER_TURN = 4
"""Of the scheduler, each with a step's tokens: what they bring is sent on before more are looked at, so that
a tokenizer that lags behind neither holds text back nor falls silent."""
TURN_S = 0.005
"""No text waits for longer until a burst of prompts is encoded, each of which takes milliseconds."""


def serve(config: Config, folder: Path, index: int) -> None:
    """Run until SIGTERM."""
    stop, watch, context = StopFlag(), Stopwatch(), new_context()
    workshop = load_workshop(config)
    compiling = Compiling(folder, workshop.vocabulary, limits_of(config))
    watch.report("tokenizer")
    keep_what_is_loaded()
    gateways: list[Link[Message]] = [
        Link(context, gateway_endpoint(folder, index), TO_TOKENIZER_FROM_GATEWAY) for index in range(config.gateways)
    ]
    scheduler: Link[Message] = Link(context, scheduler_endpoint(folder), TO_TOKENIZER_FROM_SCHEDULER)
    core, boot, pulse = TokenizerCore(workshop, compiling), os.urandom(8), Pulse(folder, "tokenizer", index)
    began = time.monotonic()
    heard, asked = dict.fromkeys([scheduler, *gateways], began), began
    backlog: deque[Message] = deque()
    calls: deque[tuple[int, Message]] = deque()
    for gateway in gateways:
        gateway.send(Serving(boot))
    while not stop.is_set:
        wait([scheduler, *gateways], 0.0 if backlog or calls else HEARTBEAT_S, compiling.fds)
        now = time.monotonic()
        backlog.extend(() if backlog else scheduler.receive())
        for _ in range(min(len(backlog), FRAMES_PER_TURN)):
            heard[scheduler] = now
            core.hear_scheduler(backlog.popleft())
        _send(core.take_outbox(), gateways, scheduler)
        for index, gateway in enumerate(gateways):
            for message in gateway.receive():
                heard[gateway] = now
                calls.append((index, message))
                if isinstance(message, CancelCall):  # what is cancelled need not be encoded any more
                    calls = deque(each for each in calls if not _begins(each[1], message))
        core.hear_compiler()
        until = time.monotonic() + TURN_S
        while calls:
            core.hear_gateway(*calls.popleft())
            if time.monotonic() > until:
                break
        if now - asked > ASK_AGAIN_S:
            asked = now
            core.ask_again()
        _send(core.take_outbox(), gateways, scheduler)
        if pulse.is_due(now):
            _notice_silence(core, heard, gateways, scheduler, now)
            pulse.beat(core.is_ready)
            scheduler.send(Heartbeat() if core.is_ready else Join(boot))
            for gateway in gateways:
                gateway.send(Heartbeat(core.is_ready, core.stats, core.model))
    compiling.close()
    pulse.end()


def _begins(message: Message, cancelled: CancelCall) -> bool:
    return isinstance(message, Generate) and message.id == cancelled.id


def _send(outbox: Outbox, gateways: Sequence[Link[Message]], scheduler: Link[Message]) -> None:
    for index, message in outbox.to_gateways:
        gateways[index].send(message)
    for message in outbox.to_scheduler:
        # One that is not there gets everything again when it comes back: see TokenizerCore.hear_scheduler.
        scheduler.send(message)


def _notice_silence(
    core: TokenizerCore,
    heard: Mapping[Link[Message], float],
    gateways: Sequence[Link[Message]],
    scheduler: Link[Message],
    now: float,
) -> None:
    if now - heard[scheduler] > SILENCE_S and not scheduler.has_input:
        core.lose_scheduler()
    for index, gateway in enumerate(gateways):
        # After a pause of our own what it said may still wait to be received.
        if now - heard[gateway] > SILENCE_S and not gateway.has_input:
            core.lose_gateway(index)
