"""Logprobs on their way through the scheduler: each belongs to its token, whoever dies; and what goes with requests."""

import struct

import msgspec
from tests.scheduler.harness import (
    OTHER_TOKENIZER,
    TOKENIZER,
    VOCAB,
    PlannerRig,
    SchedulerRig,
    completion,
    make_model,
    make_prompt,
)

from octavo.services.executor.sim import SimEngine
from octavo.services.scheduler.core import Inbox
from octavo.shared.messages import Enqueue, NewRequest, Step, StepResult, Tokens, pack, unpack


class TellingEngine(SimEngine):
    """Says minus the token as its logprob; of a prompt's token, its place as the rank."""

    def __init__(self, rig: SchedulerRig) -> None:
        super().__init__(rig.model, step_ms=0)
        self._told: dict[int, NewRequest] = {}
        self._places: dict[int, int] = {}

    def run(self, step: Step) -> StepResult:
        for new in step.new:
            self._told[new.slot], self._places[new.slot] = new, new.num_computed
        result = super().run(step)
        logprobs = {
            slot: struct.pack("<f", -token)
            for slot, token in zip(unpack(result.slots), unpack(result.token_ids), strict=True)
            if self._told[slot].params.logprobs is not None
        }
        prompts = {}
        for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
            new, first = self._told[slot], self._places[slot]
            self._places[slot] = last = first + length
            if new.params.prompt_logprobs is not None:
                prompt = unpack(new.token_ids)[: new.num_prompt]
                places = range(first + 1, min(last + 1, len(prompt)))
                prompts[slot] = b"".join(struct.pack("<if", place, -prompt[place]) for place in places)
        return msgspec.structs.replace(result, logprobs=logprobs, prompt_logprobs=prompts)


def make_rig(**settings: int) -> SchedulerRig:
    rig = SchedulerRig(make_model(**settings))
    rig._engine = TellingEngine(rig)
    return rig


def ask(rig: SchedulerRig, prompt: list[int], max_tokens: int, **fields: int) -> Enqueue:
    request = rig.make_enqueue(prompt, max_tokens)
    params = msgspec.structs.replace(request.params, **{"logprobs": 0, **fields})
    request = msgspec.structs.replace(request, params=params)
    rig.hear(request)
    return request


def told(rig: SchedulerRig, request: Enqueue, of_prompt: bool = False) -> bytes:
    """All that tokenizers heard of a request's logprobs, one after another."""
    found = b""
    for _, message in rig.sent:
        if isinstance(message, Tokens) and request.id in message.ids:
            columns = message.prompt_logprobs if of_prompt else message.logprobs
            found += columns.get(message.ids.index(request.id), b"")
    return found


def expected(request: Enqueue, start: int = 0) -> bytes:
    return struct.pack(f"<{request.params.max_tokens - start}f", *(-token for token in completion(request)[start:]))


def expected_of_prompt(prompt: list[int]) -> bytes:
    return b"".join(struct.pack("<if", place, -token) for place, token in enumerate(prompt) if place)


def test_each_token_comes_with_its_logprob_and_only_where_it_is_wanted() -> None:
    rig = make_rig()
    plain = rig.enqueue(make_prompt(9, 1), 12)
    requests = [ask(rig, make_prompt(5 + place, 2 + place), 7 + place) for place in range(3)]
    rig.run_all()
    assert [told(rig, request) for request in requests] == [expected(request) for request in requests]
    assert told(rig, plain) == b""


def test_whoever_takes_over_gets_the_logprobs_of_the_tokens_that_it_lacks() -> None:
    rig = make_rig()
    running, ended = ask(rig, make_prompt(5), 30), ask(rig, make_prompt(6, 1), 4)
    for _ in range(8):
        rig.settle()
    rig.sent.clear()
    for request in (running, ended):
        known = pack(completion(request)[:3])
        rig.hear(msgspec.structs.replace(request, output_ids=known), OTHER_TOKENIZER)
    rig.run_all()
    assert told(rig, running) == expected(running, 3)
    assert told(rig, ended) == expected(ended, 3)


def test_another_scheduler_goes_on_with_the_logprobs_that_it_is_given() -> None:
    rig = make_rig()
    request = rig.make_enqueue(make_prompt(5), 10)
    request = msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, logprobs=0))
    known = {"output_ids": pack(completion(request)[:4]), "output_logprobs": expected(request)[:16]}
    rig.hear(msgspec.structs.replace(request, **known))
    rig.settle()
    rig.sent.clear()
    rig.hear(request, OTHER_TOKENIZER)  # one that knows nothing
    rig.run_all()
    assert told(rig, request) == expected(request)


def test_logprobs_of_a_prompt_are_whole_in_chunks_behind_a_cached_prefix_and_after_preemption() -> None:
    rig = make_rig(num_blocks=24, max_step=10)
    prompt = make_prompt(33)
    rig.enqueue(prompt, 2)
    rig.run_all()
    before = rig.scheduler.stats().prefix_hits
    request = ask(rig, prompt, 3, prompt_logprobs=0)
    rig.run_all()
    assert told(rig, request, of_prompt=True) == expected_of_prompt(prompt)
    assert rig.scheduler.stats().prefix_hits == before
    for _ in range(100):  # from now on it expects short completions
        rig.enqueue(make_prompt(4), 1)
        rig.run_all()
    rig.sent.clear()
    many = [ask(rig, make_prompt(20, place), 40, prompt_logprobs=0) for place in range(4)]
    rig.run_all()
    assert rig.scheduler.stats().num_preemptions > 0
    assert [told(rig, each, of_prompt=True) for each in many] == [
        expected_of_prompt(make_prompt(20, place)) for place in range(4)
    ]
    assert [told(rig, each) for each in many] == [expected(each) for each in many]


def test_a_tokenizer_that_comes_later_hears_of_the_prompt_too() -> None:
    rig = make_rig()
    request = ask(rig, make_prompt(9), 6, prompt_logprobs=0)
    for _ in range(4):
        rig.settle()
    rig.sent.clear()
    rig.hear(request, OTHER_TOKENIZER)
    assert told(rig, request, of_prompt=True) == expected_of_prompt(make_prompt(9))
    rig.run_all()
    rig.sent.clear()
    rig.hear(request, TOKENIZER)  # it has ended meanwhile
    assert told(rig, request, of_prompt=True) == expected_of_prompt(make_prompt(9))
    assert told(rig, request) == expected(request)


def test_a_request_that_the_executor_cannot_go_on_with_ends_alone() -> None:
    rig = make_rig()
    bad, good = rig.enqueue(make_prompt(5), 20), rig.enqueue(make_prompt(6, 1), 20)
    rig.settle()
    result = rig.run_step()
    slot = next(request.slot for request in rig.scheduler.planner.running if request.id == bad.id)  # type: ignore[union-attr]
    failed = msgspec.structs.replace(result, failures={slot: "its grammar refused token 5"})
    rig.step(Inbox(from_executor=[(rig._executor, failed)]))
    rig.run_all()
    [refusal] = rig.refusals()
    assert (refusal.status, refusal.message) == (400, "its grammar refused token 5")
    assert rig.received(good) == completion(good)
    assert rig.is_empty()


def test_of_those_that_wait_the_lowest_priority_begins_first() -> None:
    rig = PlannerRig(make_model(num_slots=1))
    requests = [rig.add(make_prompt(4, place), 3) for place in range(4)]
    for request, priority in zip(requests[1:], (5, -1, 5), strict=True):
        rig.planner.waiting.remove(request)
        request.priority = priority
        rig.planner.add(request)
    order = []
    for _ in range(40):
        rig.turn()
        order += [each for each in rig.planner.running if each not in order]
    assert order == [requests[2], requests[0], requests[1], requests[3]]
    assert all(0 <= each.token_ids[-1] < VOCAB for each in order)
