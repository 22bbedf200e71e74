"""The engine on a GPU: steps are launched ahead of their results, and decoding runs as one CUDA graph a step.

What a step needs of the one before, the last token of each slot, never leaves the device. The host says which slots
decode at which positions; it learns the tokens later, while the next step already runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.gpu.compile_hooks import compiling_only
from octavo.kernels.gpu.embedding import gather
from octavo.kernels.gpu.pages import begin_pages
from octavo.kernels.gpu.sampler_state import COLUMNS
from octavo.services.executor.cache import KvCache
from octavo.services.executor.gpu.after_graph import LOGITS_ROWS, History, PendingPrompts, what_is_left
from octavo.services.executor.gpu.batch import GpuAttention, GpuCache, Plan, plan_step
from octavo.services.executor.gpu.mixed import MOST_FILLING, MixedInputs, graph_inputs, mixed_sizes
from octavo.services.executor.gpu.sampler import GpuSampler, PendingLogprobs
from octavo.services.executor.grammars import Grammars
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.slots import Slots
from octavo.shared.messages import ModelInfo, NewRequest, Step, StepResult, pack
from octavo.shared.sampling import SamplingParams
from octavo.shared.step_sizes import Spacing, round_up

RING = 4  # steps whose pinned memory may be in use; more than are ever in flight
SMALL_BATCHES = (1, 2, 4, 8)
BATCH_STEPS: Spacing = ((128, 16), (256, 32), (512, 64), (1024, 128))  # between the graphs of larger ones


@dataclass
class Launched:
    """A step on its way through the device."""

    step: Step
    slots: list[int]
    tokens: Tensor  # pinned, [slots] int32; there once `event` is
    event: torch.cuda.Event
    logprobs: PendingLogprobs | None
    prompts: PendingPrompts
    failures: dict[int, str]

    @property
    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]  # torch's own

    def result(self) -> StepResult:
        """Waits for it."""
        self.event.synchronize()
        logprobs = {} if self.logprobs is None else self.logprobs.by_slot()
        tokens, of_prompts = pack(self.tokens.tolist()), self.prompts.by_slot()
        return StepResult(
            self.step.epoch, self.step.number, pack(self.slots), tokens, logprobs, of_prompts, self.failures
        )


class GpuEngine:
    """Runs steps in the order in which they come; knows no more of a request than its slot."""

    def __init__(
        self,
        model: DecoderModel,
        info: ModelInfo,
        device: torch.device,
        kv_dtype: torch.dtype,
        grammars: Grammars | None = None,
    ) -> None:
        self.info = info
        self._model = model
        cache = self._kv = KvCache(model.spec, info.num_blocks, info.block_size, kv_dtype, device)
        max_blocks = -(-info.max_model_len // info.block_size)
        self._slots = Slots(info.num_slots, max_blocks, info.block_size, cache.null_block)
        self._cache = GpuCache(model.spec, cache, info.num_slots, max_blocks)
        self._last = torch.zeros(info.num_slots + 1, dtype=torch.int32, device=device)
        self._sampler = GpuSampler(info, device, RING, grammars)
        self._history = History(self._sampler.edits)
        self._tokens = torch.zeros(info.num_slots, dtype=torch.int32, device=device)
        size = _input_size(info, max_blocks)
        self._inputs = torch.zeros(size, dtype=torch.int32, device=device)
        self._staging = [torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(RING)]
        self._results = [torch.zeros(info.num_slots, dtype=torch.int32, pin_memory=True) for _ in range(RING)]
        self._turn = 0
        self._stride = -(-info.num_slots // 4) * 4  # where a graph that decodes finds positions; slots lie before
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """By batch: a step that only decodes, and the logits that it leaves, [batch, vocab]."""
        self._mixed: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """By rows: a step with chunks, and what it leaves in the last layer, [the most sampled rows, hidden]."""
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own
        # All of the above is filled on another stream, which no kernel of this one waits for by itself.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def reset(self) -> None:
        """Forget every slot."""
        self._stream.synchronize()
        self._slots.forget_all()
        self._history.forget_all()
        self._sampler.edits.forget_all()

    def run(self, step: Step) -> StepResult:
        """Compute a step and sample the tokens that it is to sample."""
        return self.launch(step).result()

    @torch.inference_mode()
    def launch(self, step: Step) -> Launched:
        """Begin a step; the ones before it may still run, RING - 1 at most."""
        plan = plan_step(step, self._slots)
        self._turn = (self._turn + 1) % RING
        self._history.tell()
        prompts = PendingPrompts()
        with torch.cuda.stream(self._stream):
            plan.new_states = self._sampler.admit(step.new)
            logits = self._run_mixed(plan, prompts) if plan.chunk_slots else self._run_decoding(plan)
            num_sampled = len(plan.sampled_slots)
            tokens = self._tokens[:num_sampled]
            held = self._sampler.edits.rows(plan.sampled_slots)
            if held and logits is not None:
                if self._sampler.edits.needs_history([plan.sampled_slots[row] for row in held]):
                    self._history.tell(waits=True)
                positions = [plan.positions[row] for row in plan.sampled_rows]
                self._sampler.choose_held(logits, held, plan.sampled_slots, positions, tokens, self._last)
            host = self._results[self._turn][: len(plan.sampled_slots)]
            host.copy_(tokens, non_blocking=True)
            logprobs = self._sampler.fetch(self._turn, plan.sampled_slots)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            event.record()
        failures = self._sampler.edits.take_failures()
        launched = Launched(step, plan.sampled_slots, host, event, logprobs, prompts, failures)
        if held:
            self._history.add(launched)
        return launched

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile all kernels, run the largest step, and record the graphs of all batch sizes, before requests come."""
        sizes = batch_sizes(self.info.num_slots)
        mixed = mixed_sizes(self.info.max_num_batched_tokens, self.info.max_model_len)
        with compiling_only():
            self._run_short_steps()
            with torch.cuda.stream(self._stream):
                for batch in sizes:
                    self._fill_up(batch)
                    self._decode(batch, is_rehearsal=True)
                for rows in mixed:
                    self._mix(self._fill_up_mixed(rows), is_rehearsal=True)
        self._run_short_steps()
        self._run_largest_step()
        with torch.cuda.stream(self._stream):
            for rows in reversed(mixed):
                self._record_mixed(rows)
            for batch in reversed(sizes):
                self._record(batch)
        self._run_short_steps()

    def _run_short_steps(self) -> None:
        """A step of one chunk, then one of a chunk beside a request that decodes."""
        length = min(2 * self.info.block_size + 1, self.info.max_model_len - 1, self.info.max_num_batched_tokens - 1)
        for number in range(min(2, self.info.num_slots)):
            self._run_chunks(number, range(number, number + 1), max(1, length))
        self.reset()

    def _run_largest_step(self) -> None:
        """As many rows and sampled tokens as there can be in one: what it needs of memory is there from then on."""
        num_slots = min(self.info.num_slots, self.info.max_num_batched_tokens)
        length = min(self.info.max_num_batched_tokens // num_slots, self.info.max_model_len - 1)
        self._run_chunks(0, range(num_slots), length)
        self.reset()

    def _run_chunks(self, number: int, slots: range, length: int) -> None:
        """A new request for each slot, all in the same blocks."""
        blocks = pack(range(-(-length // self.info.block_size)))
        params = SamplingParams(max_tokens=2, temperature=0.0, biases={0: 1.0} if number else {})
        new = [NewRequest(slot, pack([0] * length), 0, blocks, params) for slot in slots]
        self.run(Step(0, number, new=new, chunk_slots=pack(slots), chunk_lengths=pack([length] * len(slots))))

    def _run_decoding(self, plan: Plan) -> Tensor | None:
        """Returns the logits, [at least rows, vocab]."""
        rows = len(plan.slots)
        if rows == 0:
            return None
        batch = batch_of(rows, self.info.num_slots)
        filling = batch - rows
        sections = [plan.slots + [self.info.num_slots] * filling, plan.positions + [0] * filling]
        self._upload(sections, plan, [0, self._stride])
        graph, logits = self._graphs[batch]
        graph.replay()
        return logits

    def _record(self, batch: int) -> None:
        self._fill_up(batch)
        with self._recording() as graph:
            logits = self._decode(batch)
        self._graphs[batch] = graph, what_is_left(logits)

    @contextmanager
    def _recording(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Of what has run before: libraries' handles cannot be created, nor code be loaded, while recording."""
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not by `torch.cuda.graph`, which gives all cached memory back to the driver each time.
        graph.capture_begin(self._pool)
        yield graph
        graph.capture_end()
        self._pool = self._pool or graph.pool()

    def _fill_up(self, batch: int) -> None:
        """Have rows decode that belong to no slot."""
        self._inputs[:batch] = self.info.num_slots
        self._inputs[self._stride : self._stride + batch] = 0

    def _decode(self, batch: int, is_rehearsal: bool = False) -> Tensor:
        slots, positions = self._inputs[:batch], self._inputs[self._stride : self._stride + batch]
        attention = GpuAttention(self._cache, slots, positions, batch, None)
        rows = gather(self._model.embed, self._last, slots)
        hidden = self._model.hidden_of(rows, positions, attention, is_rehearsal=is_rehearsal)
        logits = self._model.logits(hidden)
        self._sampler.choose(logits, slots, positions, self._tokens[:batch], self._last)
        return logits

    def _fill_up_mixed(self, rows: int) -> MixedInputs:
        """Have a step with chunks consist of rows that belong to no slot."""
        inputs = graph_inputs(rows, self.info.num_slots)
        sections = inputs.sections(Plan())
        assert sections is not None
        torch.cuda.current_stream().synchronize()  # the last upload has left its pinned memory
        self._upload(sections, Plan(), inputs.starts)
        return inputs

    def _record_mixed(self, rows: int) -> None:
        inputs = self._fill_up_mixed(rows)
        with self._recording() as graph:
            hidden = self._mix(inputs)
        self._mixed[rows] = graph, hidden

    def _mix(self, inputs: MixedInputs, is_rehearsal: bool = False, needs_all: bool = False) -> Tensor:
        """The last layer's output of the rows to sample, or of all."""
        slots, positions, token_ids, decoding, sampled, chunks = inputs.views(self._inputs)
        attention = GpuAttention(self._cache, slots, positions, inputs.num_decoding, chunks, decoding)
        rows = gather(self._model.embed, self._last, slots, token_ids)
        return self._model.hidden_of(rows, positions, attention, None if needs_all else sampled, is_rehearsal)

    def _run_mixed(self, plan: Plan, prompts: PendingPrompts) -> Tensor | None:
        """Returns the logits of the sampled rows, if there are any."""
        inputs = graph_inputs(len(plan.slots), self.info.num_slots)
        recorded = None if plan.prompt_parts else self._mixed.get(inputs.rows)
        sections = inputs.sections(plan) if recorded else None
        if sections is None:  # there is no graph for it
            recorded, inputs = None, MixedInputs(len(plan.slots), self.info.num_slots, len(plan.chunk_rows))
            sections = inputs.sections(plan)
            assert sections is not None
        num_sampled = len(plan.sampled_slots)
        # As many as a graph that decodes has: for another size the library may choose another kernel, and to load one
        # waits until the device has done all that it was given.
        num_rows = min(batch_of(num_sampled, self.info.num_slots), inputs.num_decoding)
        sampled_positions = [plan.positions[row] for row in plan.sampled_rows]
        *_, slots, positions = self._upload([*sections, plan.sampled_slots, sampled_positions], plan, inputs.starts)
        if plan.prompt_parts:
            every = self._mix(inputs, needs_all=True)
            self._tell_prompts(plan, every, prompts)
            hidden = every.index_select(0, inputs.views(self._inputs)[4][:num_rows])
        elif recorded is None:
            hidden = self._mix(inputs)
        else:
            graph, hidden = recorded
            graph.replay()
        if not num_sampled:
            return None
        logits = self._model.logits(hidden[:num_rows])[:num_sampled]
        self._sampler.choose(logits, slots, positions, self._tokens[:num_sampled], self._last)
        return logits

    def _tell_prompts(self, plan: Plan, hidden: Tensor, prompts: PendingPrompts) -> None:
        """hidden: the last layer's output of all rows."""
        for part in plan.prompt_parts:
            token_ids = part.token_ids.pin_memory().to(hidden.device, non_blocking=True)
            for first in range(0, len(token_ids), LOGITS_ROWS):
                some = token_ids[first : first + LOGITS_ROWS]
                rows = hidden[part.first_row + first : part.first_row + first + len(some)]
                prompts.add(part, self._model.logits(rows), some)

    def _upload(self, sections: list[list[int]], plan: Plan, fixed: Sequence[int] = ()) -> list[Tensor]:
        """Bring sections to the device, one copy for all, and make the plan's changes to the block tables and slots.

        fixed: where the first sections begin; the others lie behind the one before. Returns their views.
        """
        changes = [
            plan.table_slots, plan.table_places, plan.table_blocks, plan.fresh_blocks, plan.new_slots, plan.new_states
        ]  # fmt: skip
        changes = changes if plan.table_slots or plan.fresh_blocks else []
        starts: list[int] = []
        values: list[int] = []
        for section in sections + changes:
            # All begin at a multiple of 16 bytes: Triton compiles a kernel anew for pointers that do not.
            place = fixed[len(starts)] if len(starts) < len(fixed) else -(-len(values) // 4) * 4
            values += [0] * (place - len(values))
            starts.append(place)
            values += section
        staging = self._staging[self._turn][: len(values)]
        staging.copy_(torch.tensor(values, dtype=torch.int32))
        self._inputs[: len(values)].copy_(staging, non_blocking=True)
        views = [
            self._inputs[start : start + len(section)]
            for start, section in zip(starts, sections + changes, strict=True)
        ]
        if changes:
            slots, places, blocks, fresh, new_slots, new_states = views[-6:]
            begin_pages(self._cache.tables, slots, places, blocks, self._kv.bits, fresh)
            if plan.new_slots:
                self._sampler.write(new_slots, new_states)
        return views[: len(sections)]


def batch_of(rows: int, num_slots: int) -> int:
    """The smallest batch that has a graph and room for so many rows."""
    for batch in SMALL_BATCHES:
        if rows <= batch:
            return min(batch, num_slots)
    return min(round_up(rows, BATCH_STEPS), num_slots)


def batch_sizes(num_slots: int) -> list[int]:
    """All that `batch_of` gives."""
    return sorted({batch_of(rows, num_slots) for rows in range(1, num_slots + 1)})


def _input_size(info: ModelInfo, max_blocks: int) -> int:
    """The most that a step uploads, in int32: rows of all kinds, a table and a sampling state for each slot, gaps."""
    rows = info.max_num_batched_tokens + MOST_FILLING
    return 5 * rows + info.num_slots * (16 + COLUMNS + 4 * (max_blocks + 1)) + 256
