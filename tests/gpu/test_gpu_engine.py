"""The GPU engine under the scheduler: small random models in float32 give transformers' greedy tokens."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tools.gpu_models import GEMMA3, SMALL
from tests.tools.pipeline import Pipeline
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.gpu.engine import batch_sizes
from octavo.services.executor.load import load_engine
from octavo.shared.config import Config
from octavo.shared.messages import NewRequest, Step, pack
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.gpu
COMMON = {**SMALL, "initializer_range": 0.1}
CASES = [
    ("llama", {}),
    ("llama", {"head_dim": 80}),
    ("qwen3", {}),
    ("gemma3_text", GEMMA3),
    ("qwen2", {}),
    ("phi3", {}),
    ("cohere", {}),
    ("bloom", {"n_head": 8, "n_layer": 4}),
    ("mpt", {"d_model": 192, "n_heads": 4, "n_layers": 4, "max_seq_len": 2048}),
]
NUM_TOKENS = 80
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)


@pytest.mark.parametrize("model_type, changes", CASES, ids=[name for name, _ in CASES])
def test_greedy_equals_transformers(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes})
    theirs = AutoModelForCausalLM.from_config(config).float().eval()
    theirs.save_pretrained(tmp_path)
    theirs.cuda()
    rng = random.Random(2)
    prompts = [[rng.randrange(1000) for _ in range(length)] for length in (1, 2, 63, 64, 65, 130, 300, 700, 9)]

    engine = load_engine(
        Config(model=str(tmp_path), device="cuda", dtype="float32", max_num_seqs=8, max_num_batched_tokens=256,
               num_kv_blocks=64, max_model_len=1024), Stopwatch())  # fmt: skip
    pipeline = Pipeline(engine)
    first = pipeline.generate(prompts, GREEDY)
    again = pipeline.generate(prompts, GREEDY)

    assert first == again
    assert pipeline.stats.prefix_hits > 0
    for prompt, ours in zip(prompts, first, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + ours], device="cuda")).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ours, device="cuda")[:, None])[:, 0]
        # Of all but equal logits either may be taken.
        assert (logits.amax(1) - chosen).max() < 1e-3


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("mpt", {"d_model": 192, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
        ("olmo2", {"max_position_embeddings": 512}),
    ],
)
def test_steps_may_be_longer_than_any_request(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    """Of models that look up a table by position."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = load_engine(
        Config(model=str(tmp_path), device="cuda", dtype="bfloat16", max_num_seqs=32, num_kv_blocks=400), Stopwatch()
    )
    assert engine.info.max_num_batched_tokens > engine.info.max_model_len
    prompts = [[each] * 300 for each in range(20)]
    assert [len(each) for each in Pipeline(engine).generate(prompts, GREEDY)] == [NUM_TOKENS] * 20


@pytest.mark.parametrize("model_type, changes", [("llama", {}), ("bloom", {"n_head": 8, "n_layer": 4})])
def test_greedy_with_a_cache_in_fp8_is_near_transformers(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**COMMON, **changes})).float().eval()
    theirs.save_pretrained(tmp_path)
    theirs.cuda()
    engine = load_engine(
        Config(model=str(tmp_path), device="cuda", dtype="bfloat16", kv_cache_dtype="fp8", max_num_seqs=8,
               max_num_batched_tokens=256, num_kv_blocks=64, max_model_len=1024), Stopwatch())  # fmt: skip
    prompts = [[(7 * i + j * j) % 1000 for j in range(length)] for i, length in enumerate((1, 63, 64, 65, 300))]
    for prompt, ours in zip(prompts, Pipeline(engine).generate(prompts, GREEDY), strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + ours], device="cuda")).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ours, device="cuda")[:, None])[:, 0]
        # A token taken at random would lie some three deviations below the best.
        assert ((logits.amax(1) - chosen) / logits.std(1)).mean() < 0.3


def test_a_seed_gives_the_same_tokens_in_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON)).float().save_pretrained(tmp_path)
    config = Config(
        model=str(tmp_path), device="cuda", dtype="float32", max_num_seqs=8, max_num_batched_tokens=256,
        num_kv_blocks=64, max_model_len=1024,
    )  # fmt: skip
    pipeline = Pipeline(load_engine(config, Stopwatch()))
    params = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=5)
    prompt = list(range(100))
    alone = pipeline.generate([prompt], params)
    among = pipeline.generate([prompt, [5] * 30, [7] * 200], params)
    assert among[0] == alone[0]
    assert len(set(map(tuple, among))) == 3


def test_random_tokens_are_those_of_the_cpu(tmp_path: Path) -> None:
    """But for draws at the very edge of a token, which the devices' rounding gives to it or to its neighbour."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON)).float().save_pretrained(tmp_path)
    pipelines = [
        Pipeline(load_engine(Config(
            model=str(tmp_path), device=device, dtype="float32", max_num_seqs=8, max_num_batched_tokens=256,
            num_kv_blocks=128, max_model_len=512), Stopwatch()))
        for device in ("cuda", "cpu")
    ]  # fmt: skip
    prompts = [list(range(length)) for length in (1, 70, 300, 64)]
    num_edges = 0
    for changes in (
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.2, "min_p": 0.05, "top_p": 0.8, "logprobs": 5},
        {"temperature": 0.7, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"temperature": 0.0, "frequency_penalty": 0.5},
        {"temperature": 0.8, "biases": {5: 3.0, 9: -100.0}},
        {"temperature": 0.8, "allowed_token_ids": pack(range(0, 1000, 3)), "frequency_penalty": 0.5},
        {"temperature": 0.0, "bad_words": (pack([1]), pack([2, 3]), pack([4, 5, 6]))},
        {"temperature": 0.8, "min_tokens": 20, "stop_token_ids": tuple(range(0, 1000, 2))},
        {"temperature": 0.8, "thinking_budget": 7, "thinking_end": pack([11, 12]), "logprobs": 3},
    ):
        params = SamplingParams(max_tokens=40, seed=11, **changes)
        for on_gpu, on_cpu in zip(*(pipeline.generate(prompts, params) for pipeline in pipelines), strict=True):
            if on_gpu != on_cpu:
                mine, theirs = next(pair for pair in zip(on_gpu, on_cpu, strict=True) if pair[0] != pair[1])
                assert abs(mine - theirs) == 1 and params.temperature > 0, changes
                num_edges += 1
    assert num_edges <= 2  # of 40 requests


def test_logprobs_of_prompts_and_of_edited_tokens_are_those_of_the_cpu(tmp_path: Path) -> None:
    """One request in chunks of 100 and 50 tokens beside one that decodes."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON)).float().save_pretrained(tmp_path)
    prompt, num_top = [(7 * place) % 1000 for place in range(150)], 4
    params = SamplingParams(5, temperature=0.0, prompt_logprobs=num_top, logprobs=num_top, biases={3: 100.0})
    told = []
    for device, block_size in (("cuda", 64), ("cpu", 16)):
        engine = load_engine(
            Config(model=str(tmp_path), device=device, dtype="float32", max_num_seqs=8, max_num_batched_tokens=256,
                   num_kv_blocks=128, max_model_len=512), Stopwatch())  # fmt: skip
        blocks = [pack(range(first, first + 256 // block_size)) for first in (0, 64)]
        new = NewRequest(1, pack(prompt), 0, blocks[0], params, len(prompt))
        beside = NewRequest(2, pack(prompt[:20]), 0, blocks[1], SamplingParams(9, temperature=0.0), 20)
        results = [
            engine.launch(Step(1, 1, new=[beside], chunk_slots=pack([2]), chunk_lengths=pack([20]))),
            engine.launch(Step(1, 2, new=[new], chunk_slots=pack([1]), chunk_lengths=pack([100]))),
        ]
        results = [each.result() for each in results]
        results += [engine.launch(Step(1, 3, chunk_slots=pack([1]), chunk_lengths=pack([50]))).result()]
        results += [engine.launch(Step(1, 4)).result()]
        told.append([record for each in results for record in (each.prompt_logprobs.get(1), each.logprobs.get(1))])
    size = 4 + 4 + 8 * num_top
    assert [len(each or b"") for each in told[0]] == [0, 0, 100 * size, 0, 49 * size, size - 4, 0, size - 4]
    for on_gpu, on_cpu in zip(*told, strict=True):
        words = [torch.frombuffer(bytearray(each or bytes(4)), dtype=torch.int32) for each in (on_gpu, on_cpu)]
        numbers = [each.view(torch.float32) for each in words]
        # Ids and ranks are whole numbers: as floats they are next to nothing, unless they differ.
        assert torch.allclose(numbers[0], numbers[1], atol=1e-3)


def test_logits_are_only_of_sizes_that_the_start_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For another size the library may choose a kernel that is not loaded, and to load one waits for the device."""
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON)).save_pretrained(tmp_path)
    engine = load_engine(
        Config(model=str(tmp_path), device="cuda", dtype="bfloat16", max_num_seqs=100, max_num_batched_tokens=256,
               num_kv_blocks=256, max_model_len=512), Stopwatch())  # fmt: skip
    model, sizes = engine._model, []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    prompts = [[place % 1000 for place in range(length)] for length in range(1, 101)]
    Pipeline(engine).generate(prompts, SamplingParams(max_tokens=50, temperature=0.0))
    assert len(set(sizes)) > 3 and set(sizes) <= set(batch_sizes(100))
