"""The engine: a model, its KV cache and its slots; runs one step after another."""

import torch
from torch import Tensor

from octavo.services.executor.batch import PagedAttention, PromptPart, build_batch
from octavo.services.executor.cache import KvCache
from octavo.services.executor.decode_replay import record_decode
from octavo.services.executor.grammars import Grammars
from octavo.services.executor.launched import Done
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.sampler import Sampler, logprobs_of, prompt_logprobs_of
from octavo.services.executor.slots import Slots
from octavo.shared.messages import ModelInfo, Step, StepResult, pack

LOGITS_ROWS = 64  # of a prompt at once: logits are wide


class Engine:
    """Runs steps in the order in which they come; knows no more of a request than its slot."""

    def __init__(self, model: DecoderModel, info: ModelInfo, grammars: Grammars | None = None) -> None:
        self.info = info
        self._model = model
        self._cache = KvCache(model.spec, info.num_blocks, info.block_size, model.dtype)
        max_blocks = -(-info.max_model_len // info.block_size)
        self._slots = Slots(info.num_slots, max_blocks, info.block_size, self._cache.null_block)
        self._sampler = Sampler(info.vocab_size, grammars)
        self._replay = record_decode(model, self._cache, info.num_slots, max_blocks)

    def reset(self) -> None:
        """Forget every slot."""
        self._slots.forget_all()
        self._sampler.forget_all()

    def launch(self, step: Step) -> Done:
        """Run a step."""
        return Done(self.run(step))

    @torch.inference_mode()
    def run(self, step: Step) -> StepResult:
        """Compute a step and sample the tokens that it is to sample."""
        slots = self._slots
        fresh = slots.apply(step)
        self._sampler.admit(step.new)
        if fresh:
            self._cache.clear(torch.tensor(fresh, dtype=torch.int64))
        batch = build_batch(step, slots, self.info.block_size)
        if len(batch.token_ids) == 0:
            return StepResult(step.epoch, step.number, b"", b"")
        sampled, prompt_logprobs = batch.sampled_slots, dict[int, bytes]()
        if self._replay is not None and self._replay.can_run(batch):
            logits = self._replay.run(batch)
        else:
            attention = PagedAttention(batch, self._cache)
            hidden = self._model.hidden(batch.token_ids, batch.positions, attention, batch.needed_rows)
            prompt_logprobs = self._prompt_logprobs(batch.prompt_parts, hidden[len(sampled) :])
            if not sampled:
                return StepResult(step.epoch, step.number, b"", b"", {}, prompt_logprobs)
            logits = self._model.logits(hidden[: len(sampled)])
        params = [each for each in (slots.params[slot] for slot in sampled) if each is not None]
        tokens = self._sampler.choose(logits, sampled, params, [slots.num_computed[slot] for slot in sampled])
        slots.last_tokens[torch.tensor(sampled)] = tokens
        logprobs, failures = logprobs_of(logits, tokens, sampled, params), self._sampler.take_failures()
        return StepResult(
            step.epoch, step.number, pack(sampled), pack(tokens.tolist()), logprobs, prompt_logprobs, failures
        )

    def _prompt_logprobs(self, parts: list[PromptPart], hidden: Tensor) -> dict[int, bytes]:
        """By slot, from the last layer's output at the parts' rows, [rows, hidden]."""
        told = {}
        for part in parts:
            mine, hidden = hidden[: len(part.token_ids)], hidden[len(part.token_ids) :]
            pieces = zip(torch.split(mine, LOGITS_ROWS), torch.split(part.token_ids, LOGITS_ROWS), strict=True)
            told[part.slot] = b"".join(
                prompt_logprobs_of(self._model.logits(rows), token_ids, part.num_top) for rows, token_ids in pieces
            )
        return told
