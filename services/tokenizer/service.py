"""The tokenizer process: sockets around core.py. Any number of them may run; they come and go at any time."""

import os
import time
from pathlib import Path

from octavo.services.tokenizer.core import TokenizerCore
from octavo.services.tokenizer.prompts import Prompter
from octavo.services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from octavo.shared.config import Config
from octavo.shared.messages import (
    TO_TOKENIZER_FROM_GATEWAY,
    TO_TOKENIZER_FROM_SCHEDULER,
    Heartbeat,
    Join,
    Message,
    Serving,
)
from octavo.shared.model_files import ModelFiles, locate, read_config, read_generation_config
from octavo.shared.process import Pulse, StopFlag, Stopwatch
from octavo.shared.transport import (
    HEARTBEAT_S,
    SILENCE_S,
    Link,
    gateway_endpoint,
    new_context,
    scheduler_endpoint,
    wait,
)


def serve(config: Config, folder: Path) -> None:
    """Run until SIGTERM."""
    stop, watch, context = StopFlag(), Stopwatch(), new_context()
    prompter = load_prompter(config)
    watch.report("tokenizer")
    gateways: list[Link[Message]] = [
        Link(context, gateway_endpoint(folder, index), TO_TOKENIZER_FROM_GATEWAY) for index in range(config.gateways)
    ]
    scheduler: Link[Message] = Link(context, scheduler_endpoint(folder), TO_TOKENIZER_FROM_SCHEDULER)
    core, boot, pulse, heard = TokenizerCore(prompter), os.urandom(8), Pulse(folder, "tokenizer"), time.monotonic()
    for gateway in gateways:
        gateway.send(Serving(boot))
    while not stop.is_set:
        wait([scheduler, *gateways], HEARTBEAT_S)
        now = time.monotonic()
        for message in scheduler.receive():
            heard = now
            core.hear_scheduler(message)
        for index, gateway in enumerate(gateways):
            for message in gateway.receive():
                core.hear_gateway(index, message)
        if now - heard > SILENCE_S:
            core.lose_scheduler()
        outbox = core.take_outbox()
        for index, message in outbox.to_gateways:
            gateways[index].send(message)
        for message in outbox.to_scheduler:
            scheduler.send(message)
        if pulse.is_due(now):
            pulse.beat(core.is_ready)
            scheduler.send(Heartbeat() if core.is_ready else Join(boot))
            for gateway in gateways:
                gateway.send(Heartbeat(core.is_ready, core.stats))
    pulse.end()


def load_prompter(config: Config) -> Prompter:
    """The vocabulary and template of the configured model. Raises ModelError."""
    files = locate(config.model)
    vocabulary = load_vocabulary(files)
    return Prompter(vocabulary, _eos_ids(files) if vocabulary is None else vocabulary.eos_ids)


def _eos_ids(files: ModelFiles) -> frozenset[int]:
    """End-of-sequence ids of a model without a tokenizer."""
    found = (read_config(files) | read_generation_config(files)).get("eos_token_id")
    return frozenset([found] if isinstance(found, int) else found if isinstance(found, list) else [])
