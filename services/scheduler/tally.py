"""What the scheduler counts for /metrics, since its start and over all epochs.

Times are taken where they are known: a request waits until the step that begins it is planned, is prefilled until the
result with its first token comes, and decodes until its end. A step in which all requests decode costs one observation.
"""

import msgspec

from octavo.services.scheduler.planner import Planner
from octavo.services.scheduler.request import Request, State
from octavo.shared.histogram import Histogram
from octavo.shared.messages import Begin, RequestId, Stats, Step, unpack


class Tally:
    """Counters and histograms; core.py says what happens."""

    def __init__(self) -> None:
        self.generation_tokens = 0
        self.num_rejected = 0
        """Requests refused because too many wait."""
        self._prompt_tokens = self._prompt_tokens_cached = 0
        self._num_ended = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._begin_in: dict[int, list[Request]] = {}
        """Step -> requests whose last known token it computes: its result brings the first new ones."""
        self._past = Stats()
        self._queue, self._prefill, self._decode, self._inference = (
            Histogram(f"vllm:request_{phase}_time_seconds") for phase in ("queue", "prefill", "decode", "inference")
        )
        self._per_token = Histogram("vllm:request_time_per_output_token_seconds")
        self._prompts = Histogram("vllm:request_prompt_tokens")
        self._computed = Histogram("vllm:request_prefill_kv_computed_tokens")
        self._completions = Histogram("vllm:request_generation_tokens")
        self._max_tokens = Histogram("vllm:request_params_max_tokens")
        self._steps = Histogram("vllm:iteration_tokens_total")
        self._histograms = [each for each in vars(self).values() if isinstance(each, Histogram)]

    def note_step(self, planner: Planner, step: Step, num_chunk_tokens: int, now: float) -> None:
        """A step was planned."""
        self._steps.observe(num_chunk_tokens + planner.num_decoding)
        for new in step.new:
            request = planner.by_slot[new.slot]
            if request is not None and request.admitted_s is None:
                request.admitted_s = now
                request.num_cached = min(new.num_computed, request.num_prompt)
                self._prompt_tokens += request.num_prompt
                self._prompt_tokens_cached += request.num_cached
        if step.chunk_slots:
            owners = (planner.by_slot[slot] for slot in unpack(step.chunk_slots))
            beginning = [each for each in owners if each is not None and each.state is State.DECODING]
            self._begin_in[step.number] = beginning

    def note_result(self, number: int, now: float) -> dict[RequestId, Begin]:
        """The result of a step has come; none of its requests has ended yet. Returns what is new of first tokens."""
        begins = {}
        for request in self._begin_in.pop(number, ()):
            if request.first_token_s is None:
                request.first_token_s = now
                if request.arrived_s is not None and request.admitted_s is not None:
                    begins[request.id] = Begin(request.admitted_s - request.arrived_s, now - request.admitted_s)
        return begins

    def note_end(self, request: Request, reason: str, now: float) -> None:
        """A request is over.

        Args:
            request: as it was at its end.
            reason: "stop" and "length" for those that have all their tokens, "abort" for those that nobody wants any
                more, "error" for those that cannot go on.
            now: of the clock that all times are of.
        """
        if reason == "error" and request.admitted_s is None:
            return  # it was never taken in
        self._num_ended[reason] += 1
        if reason not in ("stop", "length"):
            return
        self._prompts.observe(request.num_prompt)
        self._completions.observe(request.num_output)
        self._max_tokens.observe(request.params.max_tokens)
        if request.arrived_s is None or request.admitted_s is None or request.first_token_s is None:
            return
        self._computed.observe(request.num_prompt - request.num_cached)
        self._queue.observe(request.admitted_s - request.arrived_s)
        self._prefill.observe(request.first_token_s - request.admitted_s)
        self._decode.observe(now - request.first_token_s)
        self._inference.observe(now - request.admitted_s)
        if request.num_output > 1:
            self._per_token.observe((now - request.first_token_s) / (request.num_output - 1))

    def end_epoch(self, planner: Planner) -> None:
        """The executor is gone, and with it the planner and the results to come."""
        self._past = self.stats(planner, 0, 0.0)
        self._begin_in.clear()

    def stats(self, planner: Planner | None, num_requests: int, now: float) -> Stats:
        """All of it, with the state of the moment.

        Args:
            planner: of this epoch; None: there is no executor.
            num_requests: that run or wait.
            now: of the machine's monotonic clock.
        """
        past = self._past
        num_running = 0 if planner is None else len(planner.running)
        num_waiting = num_requests - num_running
        histograms = [each for each in (each.counts() for each in self._histograms) if any(each.counts)]
        stats = msgspec.structs.replace(
            past, num_running=num_running, num_waiting=num_waiting, num_blocks_used=0, num_positions=0, num_unfilled=0,
            prompt_tokens=self._prompt_tokens, generation_tokens=self.generation_tokens,
            prompt_tokens_cached=self._prompt_tokens_cached, num_rejected=self.num_rejected,
            num_deferred=num_waiting if planner is None else 0, histograms=histograms, made_at_s=now,
            **{f"num_ended_by_{reason}": count for reason, count in self._num_ended.items()},
        )  # fmt: skip
        if planner is None:
            return stats
        return msgspec.structs.replace(
            stats,
            num_blocks=planner.pool.num_blocks,
            block_size=planner.model.block_size,
            num_blocks_used=planner.pool.num_held,
            num_positions=planner.pool.num_held * planner.model.block_size,
            num_unfilled=planner.num_unfilled,
            num_steps=past.num_steps + planner.number,
            num_preemptions=past.num_preemptions + planner.num_preemptions,
            prefix_queries=past.prefix_queries + planner.prefix_queries,
            prefix_hits=past.prefix_hits + planner.prefix_hits,
        )
