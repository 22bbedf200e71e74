"""Choosing tokens on a CPU: penalties that know a request's past, and logprobs in the step's result."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tools.pipeline import Pipeline
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.load import load_engine
from octavo.services.executor.sampler import Sampler, logprobs_of
from octavo.shared.config import Config
from octavo.shared.messages import NewRequest, Step, StepResult, pack
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

VOCAB = 300
PENALISED = SamplingParams(
    24, temperature=0.8, top_p=0.9, seed=3, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=1.0
)


def request(slot: int, token_ids: list[int], params: SamplingParams, num_prompt: int | None = None) -> NewRequest:
    return NewRequest(slot, pack(token_ids), 0, b"", params, num_prompt)


def test_a_resumed_request_is_penalised_as_if_it_had_never_stopped() -> None:
    torch.manual_seed(0)
    prompt, logits = [5, 6, 7, 5], torch.randn(20, 1, 50)
    sampler, completion = Sampler(50), []
    sampler.admit([request(2, prompt, PENALISED)])
    for index in range(20):
        completion += sampler.choose(logits[index], [2], [PENALISED], [4 + index]).tolist()
    sampler.admit([request(1, prompt + completion[:9], PENALISED, len(prompt))])
    again = [sampler.choose(logits[index], [1], [PENALISED], [4 + index]).tolist()[0] for index in range(9, 20)]
    assert again == completion[9:]


def test_a_penalty_ends_repetition_and_harms_no_neighbour() -> None:
    logits = torch.linspace(0, 1, 50).repeat(2, 1)
    greedy = SamplingParams(10, temperature=0.0)
    penalised = SamplingParams(10, temperature=0.0, presence_penalty=2.0)
    sampler = Sampler(50)
    sampler.admit([request(0, [49], greedy), request(1, [49], penalised)])
    chosen = [sampler.choose(logits, [0, 1], [greedy, penalised], [1 + n, 1 + n]).tolist() for n in range(4)]
    assert chosen == [[49, 49], [49, 48], [49, 47], [49, 46]]
    assert torch.equal(logits, torch.linspace(0, 1, 50).repeat(2, 1)), "the logits of the model are left as they are"


def test_logprobs_go_to_the_requests_that_ask_for_them() -> None:
    logits = torch.randn(3, 40)
    params = [SamplingParams(1, logprobs=2), SamplingParams(1), SamplingParams(1, logprobs=0)]
    told = logprobs_of(logits, torch.tensor([7, 8, 9]), [4, 5, 6], params)
    every = logits.double().log_softmax(-1)
    assert told.keys() == {4, 6}
    assert struct.unpack("<f", told[6])[0] == pytest.approx(float(every[2, 9]), abs=1e-5)
    chosen, first, second, *ids = struct.unpack("<3f2i", told[4])
    expected = [float(every[0, 7]), *every[0].topk(2).values.tolist()]
    assert [chosen, first, second] == pytest.approx(expected, abs=1e-5)
    assert ids == every[0].topk(2).indices.tolist()


def tiny_engine(folder: Path, num_kv_blocks: int) -> Any:
    torch.manual_seed(1)
    config = CONFIG_MAPPING["llama"](
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return load_engine(
        Config(model=str(folder), device="cpu", dtype="float32", max_num_seqs=4, num_kv_blocks=num_kv_blocks,
               max_num_batched_tokens=128, max_model_len=96), Stopwatch())  # fmt: skip


def test_preemption_changes_no_penalised_token(tmp_path: Path) -> None:
    prompts = [[slot + 1] * 20 for slot in range(4)]
    calm, pressed = Pipeline(tiny_engine(tmp_path, 40)), Pipeline(tiny_engine(tmp_path, 8))
    params = SamplingParams(60, temperature=0.8, seed=3, repetition_penalty=1.2, frequency_penalty=0.3)
    expected = calm.generate(prompts, params)
    pressed.generate([[9]] * 100, SamplingParams(1))  # from now on it expects short completions
    assert pressed.generate(prompts, params) == expected
    assert calm.stats.num_preemptions == 0 and pressed.stats.num_preemptions > 0
    assert calm.generate(prompts, SamplingParams(60, temperature=0.8, seed=3)) != expected


def test_a_step_names_the_logprobs_of_its_tokens(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, 8)
    prompt, params = [3, 1, 4, 1, 5], SamplingParams(2, temperature=0.0, logprobs=3)
    new = NewRequest(2, pack(prompt), 0, pack([0]), params, len(prompt))
    first: StepResult = engine.run(Step(1, 1, new=[new], chunk_slots=pack([2]), chunk_lengths=pack([5])))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).float()
    with torch.inference_mode():
        every = theirs(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert first.logprobs.keys() == {2}
    *values, _, _, _ = told = struct.unpack("<4f3i", first.logprobs[2])
    assert list(told[4:]) == every.topk(3).indices.tolist()
    assert values == pytest.approx([float(every.max()), *every.topk(3).values.tolist()], abs=1e-4)
