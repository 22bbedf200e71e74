"""Decode steps give the same bits whether they are replayed or not."""

import dataclasses

import pytest
import torch
from tests.tools.pipeline import Pipeline

from octavo.kernels.linear import can_tile
from octavo.kernels.native import find_loop
from octavo.services.executor.batch import PagedAttention, build_batch
from octavo.services.executor.cache import KvCache
from octavo.services.executor.decode_replay import record_decode
from octavo.services.executor.engine import Engine
from octavo.services.executor.launched import Done
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm, Rope
from octavo.services.executor.slots import Slots
from octavo.services.executor.weights import dummy_weights
from octavo.shared.messages import ModelInfo, Step, StepResult, pack
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.skipif(
    find_loop("replay", torch.float32, torch.device("cpu")) is None, reason="needs numba, which compiles the loops"
)
needs_tiles = pytest.mark.skipif(
    not can_tile(torch.empty(32, 32, dtype=torch.bfloat16)),
    reason="needs a CPU with matrix tiles: without, more than one row is not replayed",
)

BLOCK_SIZE = 4
ATTENTION = Attention(heads=4, kv_heads=2, head_dim=16, rope=Rope(10_000.0, 16), scale=0.25)
LAYER = Layer(ATTENTION, Mlp(96))
SPEC = Decoder(vocab=256, hidden=64, layers=(LAYER,) * 5, norm=Norm(), tied=True)
SPECS = {
    "plain": SPEC,
    "biases": dataclasses.replace(
        SPEC,
        layers=(Layer(dataclasses.replace(ATTENTION, qkv_bias=True, out_bias=True), Mlp(96, bias=True)),) * 2,
        tied=False,
        head_bias=True,
    ),
    "windows": dataclasses.replace(
        SPEC, layers=(Layer(dataclasses.replace(ATTENTION, window=5, softcap=20.0), Mlp(64)), LAYER, LAYER)
    ),
    "parallel": dataclasses.replace(SPEC, layers=(dataclasses.replace(LAYER, parallel=True),) * 3, embed_scale=8.0),
}
NOT_LOOPS = {
    "layer_norm": dataclasses.replace(SPEC, norm=Norm("layer")),
    "plain_mlp": dataclasses.replace(SPEC, layers=(Layer(ATTENTION, Mlp(96, gated=False)),)),
    "scaled_logits": dataclasses.replace(SPEC, logit_scale=0.5),
    "capped_logits": dataclasses.replace(SPEC, logit_softcap=30.0),
    "scaled_residual": dataclasses.replace(SPEC, residual_scale=0.5),
}
PROMPTS = [[(7 * i + j * j) % 256 for j in range(1 + 3 * i)] for i in range(9)]
GREEDY = SamplingParams(max_tokens=13, temperature=0.0)  # over three blocks


def make_model(spec: Decoder, dtype: torch.dtype) -> DecoderModel:
    return DecoderModel(spec, dict(dummy_weights(spec, 0, dtype)), dtype, max_positions=64)


def make_info(num_slots: int, num_blocks: int) -> ModelInfo:
    return ModelInfo(
        vocab_size=256,
        max_model_len=64,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        num_slots=num_slots,
        max_num_batched_tokens=16,
        device="cpu",
        dtype="",
    )


class TwoWays:
    """An engine that computes each step without replay and, in another cache, with it."""

    def __init__(self, model: DecoderModel, info: ModelInfo) -> None:
        self.info, self.num_replayed = info, 0
        self._model = model
        self._caches = [KvCache(model.spec, info.num_blocks, BLOCK_SIZE, model.dtype) for _ in range(2)]
        max_blocks = info.max_model_len // BLOCK_SIZE
        self._slots = Slots(info.num_slots, max_blocks, BLOCK_SIZE, info.num_blocks)
        self.replay = record_decode(model, self._caches[1], info.num_slots, max_blocks)

    def reset(self) -> None:
        self._slots.forget_all()

    @torch.inference_mode()
    def launch(self, step: Step) -> Done:
        fresh = torch.tensor(self._slots.apply(step), dtype=torch.int64)
        for cache in self._caches:
            cache.clear(fresh)
        batch = build_batch(step, self._slots, BLOCK_SIZE)
        logits = [torch.empty(0, self.info.vocab_size)]
        if len(batch.token_ids):
            hidden = [self._model.hidden(batch.token_ids, batch.positions, PagedAttention(batch, self._caches[0]))]
            if self.replay is not None and self.replay.can_run(batch):
                self.num_replayed += 1
                logits = [self.replay.run(batch)]
            else:
                hidden.append(
                    self._model.hidden(batch.token_ids, batch.positions, PagedAttention(batch, self._caches[1]))
                )
                logits = []
            logits += [self._model.logits(each.index_select(0, batch.sampled_rows)) for each in hidden]
            assert torch.equal(logits[0], logits[1])
        tokens = logits[0].max(-1).indices
        self._slots.last_tokens[torch.tensor(batch.sampled_slots, dtype=torch.int64)] = tokens
        return Done(StepResult(step.epoch, step.number, pack(batch.sampled_slots), pack(tokens.tolist())))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_tiles)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("num_slots, num_blocks", [(9, 99), (3, 40), (1, 17)])
def test_requests_that_join_and_grow_and_leave(
    num_slots: int, num_blocks: int, spec: Decoder, dtype: torch.dtype
) -> None:
    info = make_info(num_slots, num_blocks)
    engine = TwoWays(make_model(spec, dtype), info)
    assert engine.replay is not None and engine.replay.max_rows == (num_slots if dtype == torch.bfloat16 else 1)
    first = Pipeline(engine).generate(PROMPTS, GREEDY)
    assert engine.num_replayed > 0
    again = Pipeline(engine).generate(PROMPTS, GREEDY)
    assert first == again
    assert Pipeline(Engine(make_model(spec, dtype), info)).generate(PROMPTS, GREEDY) == first


@needs_tiles
def test_requests_that_are_preempted(two_threads: None) -> None:
    engine = TwoWays(make_model(SPEC, torch.bfloat16), make_info(9, 30))
    pipeline = Pipeline(engine)
    for _ in range(8):  # the scheduler comes to expect short completions, and admits more than blocks can hold
        pipeline.generate(PROMPTS, SamplingParams(max_tokens=1, temperature=0.0))
    pipeline.generate(PROMPTS, GREEDY)
    assert pipeline.stats.num_preemptions > 0 and engine.num_replayed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", NOT_LOOPS.values(), ids=NOT_LOOPS)
def test_a_model_that_is_not_all_loops_runs_without_replay(spec: Decoder, dtype: torch.dtype) -> None:
    engine = TwoWays(make_model(spec, dtype), make_info(4, 30))
    assert engine.replay is None
    assert len(Pipeline(engine).generate(PROMPTS, GREEDY)) == len(PROMPTS)


@needs_tiles
def test_more_requests_than_are_recorded_run_without_replay() -> None:
    engine = TwoWays(make_model(SPEC, torch.bfloat16), make_info(70, 999))
    prompts = [[i, i + 1] for i in range(70)]
    assert engine.replay is not None and engine.replay.max_rows == 64
    assert len(Pipeline(engine).generate(prompts, SamplingParams(max_tokens=4, temperature=0.0))) == 70
