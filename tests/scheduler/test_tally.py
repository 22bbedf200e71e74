"""What the scheduler counts: every request once, each time between the right two moments, whatever happens to it."""

import logging

import msgspec
import pytest
from tests.scheduler.harness import (
    EXECUTOR,
    OTHER_EXECUTOR,
    TOKENIZER,
    SchedulerRig,
    completion,
    make_model,
    make_prompt,
)

from octavo.services.scheduler.core import Inbox
from octavo.shared.messages import Begin, Cancel, Stats, Tokens, pack


def observed(rig: SchedulerRig) -> dict[str, tuple[int, float]]:
    """Count and sum of each histogram in which something was observed, without the prefix of their names."""
    stats = rig.scheduler.stats()
    return {each.name.removeprefix("vllm:"): (sum(each.counts), each.sum) for each in stats.histograms}


def ends(rig: SchedulerRig) -> tuple[int, int, int, int]:
    stats = rig.scheduler.stats()
    return stats.num_ended_by_stop, stats.num_ended_by_length, stats.num_ended_by_abort, stats.num_ended_by_error


def test_a_request_s_life_is_queue_prefill_and_decode() -> None:
    rig = SchedulerRig(make_model(num_blocks=64, num_slots=1, max_step=8))
    rig.now = 100.0
    rig.enqueue(make_prompt(4), max_tokens=2)
    rig.enqueue(make_prompt(20, first=1), max_tokens=5)  # waits for the slot, then takes three steps to its first token
    while rig.steps:
        rig.now += 1.0
        rig.settle()
    # The first begins at 100, has its first token at 101 and its second at 102. The second begins then: its tokens
    # come at 105, 106, 107, 108 and 109.
    times = observed(rig)
    assert times["request_queue_time_seconds"] == (2, 0.0 + 2.0)
    assert times["request_prefill_time_seconds"] == (2, 1.0 + 3.0)
    assert times["request_decode_time_seconds"] == (2, 1.0 + 4.0)
    assert times["request_inference_time_seconds"] == (2, 2.0 + 7.0)
    assert times["request_time_per_output_token_seconds"] == (2, 1.0 + 1.0)
    assert times["request_prompt_tokens"] == times["request_prefill_kv_computed_tokens"] == (2, 24.0)
    assert times["request_generation_tokens"] == times["request_params_max_tokens"] == (2, 7.0)
    assert ends(rig) == (0, 2, 0, 0)
    told = [message.begins for _, message in rig.sent if isinstance(message, Tokens) and message.begins]
    assert told == [{0: Begin(0.0, 1.0)}, {0: Begin(2.0, 3.0)}], "tokenizers hear of it with first tokens"


def test_a_completion_of_one_token_has_no_time_per_token() -> None:
    rig = SchedulerRig()
    rig.enqueue(make_prompt(10), max_tokens=1)
    rig.now = 3.0
    rig.run_all()
    times = observed(rig)
    assert "request_time_per_output_token_seconds" not in times
    assert times["request_prefill_time_seconds"] == (1, 3.0)
    assert times["request_decode_time_seconds"] == (1, 0.0)


def test_steps_count_the_tokens_that_they_compute_and_generate() -> None:
    rig = SchedulerRig()
    rig.enqueue(make_prompt(10), max_tokens=4)
    rig.run_all()
    assert observed(rig)["iteration_tokens_total"] == (4, 10 + 4)


def test_ends_are_counted_by_their_reason() -> None:
    rig = SchedulerRig()
    by_length = rig.enqueue(make_prompt(5), max_tokens=9)
    plain = rig.make_enqueue(make_prompt(5, first=1), max_tokens=9)
    stop = completion(plain)[4]
    by_token = rig.enqueue(make_prompt(5, first=1), max_tokens=9, stops=(stop,))
    by_string, by_client = (rig.enqueue(make_prompt(5, first=each), max_tokens=9) for each in (2, 3))
    too_long = rig.enqueue([1] * rig.model.max_model_len, max_tokens=9)
    rig.settle()
    rig.hear(Cancel([by_string.id], "stop"))
    rig.cancel(by_client)
    rig.cancel(by_client)  # in vain
    rig.run_all()
    assert [rig.reasons(each) for each in (by_length, by_token)] == [["length"], ["stop"]]
    assert rig.refusals() and not rig.reasons(too_long)
    assert ends(rig) == (2, 1, 1, 0)  # what is not taken in is no end


def test_a_request_that_cannot_go_on_under_another_model_is_an_error() -> None:
    rig = SchedulerRig(make_model(num_blocks=64))
    rig.enqueue(make_prompt(100), max_tokens=50)
    rig.settle()
    rig.connect_executor(OTHER_EXECUTOR, make_model(num_blocks=8))
    assert len(rig.refusals()) == 1
    assert ends(rig) == (0, 0, 0, 1)


def test_a_request_counts_once_however_often_it_is_begun() -> None:
    rig = SchedulerRig()
    rig.enqueue(make_prompt(12), max_tokens=6)
    rig.enqueue(make_prompt(12), max_tokens=6)  # shares two of its three blocks
    rig.settle()
    rig.now = 7.0
    rig.step(Inbox(lost=[EXECUTOR]))
    assert rig.scheduler.stats().num_deferred == rig.scheduler.stats().num_waiting == 2
    rig.now = 9.0
    rig.connect_executor(OTHER_EXECUTOR)
    rig.run_all()
    stats, times = rig.scheduler.stats(), observed(rig)
    assert (stats.prompt_tokens, stats.prompt_tokens_cached, stats.num_deferred) == (24, 8, 0)
    assert times["request_queue_time_seconds"] == (2, 0.0)
    assert times["request_prefill_kv_computed_tokens"] == (2, 16.0)
    # The first had a token before the executor was lost, the second had none: the pause is in one's decoding time,
    # in the other's until its first token.
    assert times["request_decode_time_seconds"] == times["request_prefill_time_seconds"] == (2, 9.0)
    assert ends(rig) == (0, 2, 0, 0)


def test_what_began_under_an_earlier_scheduler_is_counted_but_not_timed() -> None:
    rig = SchedulerRig()
    request = rig.make_enqueue(make_prompt(5), max_tokens=9)
    rig.hear(msgspec.structs.replace(request, output_ids=pack(completion(request)[:3])))
    rig.run_all()
    assert rig.received(request, num_known=3) == completion(request)[3:]
    assert set(observed(rig)) == {
        "iteration_tokens_total",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_params_max_tokens",
    }
    assert ends(rig) == (0, 1, 0, 0)


def test_refusals_for_want_of_room_are_counted() -> None:
    rig = SchedulerRig(make_model(num_slots=1), max_queued=1)
    for first in range(4):
        rig.enqueue(make_prompt(5, first), max_tokens=5)
    assert rig.scheduler.stats().num_rejected == len(rig.refusals()) == 2


def test_traffic_is_logged_every_ten_seconds_and_silence_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo.services.scheduler.traffic_log")
    rig = SchedulerRig()
    rig.pass_time(25.0, TOKENIZER)
    assert caplog.records == []
    rig.enqueue(make_prompt(8), max_tokens=20)
    rig.run_all()
    rig.pass_time(30.0, TOKENIZER)
    (record,) = caplog.records
    assert record.message == "traffic"
    fields = vars(record)
    assert (fields["prompt_tokens_per_s"], fields["generation_tokens_per_s"]) == (0.8, 2.0)
    assert (fields["running"], fields["kv_cache_usage"], fields["prefix_cache_hits"]) == (0, "0.0%", "0.0%")


def test_counters_tell_when_they_were_made() -> None:
    rig = SchedulerRig()
    rig.now = 12.5
    rig.step()
    assert rig.scheduler.stats() == Stats(num_blocks=64, block_size=4, made_at_s=12.5)
