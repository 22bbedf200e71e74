"""The scheduler process: sockets around the pure state machine of core.py."""

import os
import time
from pathlib import Path

from octavo.services.scheduler.core import Inbox, Outbox, Scheduler
from octavo.shared.config import Config
from octavo.shared.messages import TO_SCHEDULER_FROM_EXECUTOR, TO_SCHEDULER_FROM_TOKENIZER, Message
from octavo.shared.process import StopFlag, Stopwatch
from octavo.shared.pulse import Pulse
from octavo.shared.transport import (
    HEARTBEAT_S,
    Address,
    Hub,
    executor_endpoint,
    new_context,
    scheduler_endpoint,
    wait,
)


def serve(config: Config, folder: Path, index: int) -> None:
    """Run until SIGTERM."""
    stop, watch = StopFlag(), Stopwatch()
    context = new_context()
    tokenizers: Hub[Message] = Hub(context, scheduler_endpoint(folder), TO_SCHEDULER_FROM_TOKENIZER)
    executors: Hub[Message] = Hub(context, executor_endpoint(folder), TO_SCHEDULER_FROM_EXECUTOR)
    max_step_s = config.max_step_ms / 1e3 if config.max_step_ms is not None else None
    scheduler = Scheduler(os.urandom(8), config.max_queued_requests, config.enable_prefix_caching, max_step_s)
    pulse = Pulse(folder, "scheduler", index)
    watch.report("scheduler")
    lost: list[Address] = []
    longest_s = 0.0
    while not stop.is_set:
        wait([tokenizers, executors], HEARTBEAT_S)
        now = time.monotonic()
        outbox = scheduler.step(now, Inbox(tokenizers.receive(), executors.receive(), lost))
        lost = _send(outbox, tokenizers, executors)
        longest_s = max(longest_s, time.monotonic() - now)
        if pulse.is_due(now):
            pulse.beat(True, scheduler.stats().num_steps, longest_s)
            longest_s = 0.0
    pulse.end()


def _send(outbox: Outbox, tokenizers: Hub[Message], executors: Hub[Message]) -> list[Address]:
    """Send all; returns the peers that could not be reached."""
    lost = [to for to, message in outbox.to_executor if not executors.send(to, message)]
    lost += [to for to, message in outbox.to_tokenizers if not tokenizers.send(to, message)]
    return list(dict.fromkeys(lost))
