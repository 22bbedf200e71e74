"""The start on a GPU: streamed weights, memory, compilations, and an end with its reason."""

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tools.pipeline import Pipeline

from octavo.services.executor.gpu.weight_stream import AHEAD_BYTES, to_device
from octavo.services.executor.load import load_engine
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.weights import dummy_weights
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.gpu
QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "hidden_act": "silu",
}  # fmt: skip
FAULT = """
import os, runpy
from octavo.services.executor import service
from octavo.shared.messages import NewRequest, Reset, Step, pack
from octavo.shared.sampling import SamplingParams
class Link:
    socket = os.open("/dev/zero", os.O_RDONLY)
    def __init__(self, *unused):
        pass
    new = [NewRequest(0, pack([999_999_999]), 0, pack([0]), SamplingParams(max_tokens=2))]
    messages = [Reset(1), Step(1, 41, new=new, chunk_slots=pack([0]), chunk_lengths=pack([1]))]
    def receive(self):
        taken, self.messages = self.messages, []
        return taken
    def send(self, message):
        print(type(message).__name__, getattr(message, "number", ""))
service.Link = Link
runpy.run_module("octavo.services.executor", run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    return str(tmp_path)


def load(folder: str, **changes: Any) -> Any:
    options = {"num_kv_blocks": 256, "max_num_seqs": 16, "max_num_batched_tokens": 512} | changes
    return load_engine(Config(model=folder, device="cuda", load_format="dummy", **options), Stopwatch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_weights_are_the_cpus(dtype: torch.dtype) -> None:
    _, spec = build_spec(QWEN3 | {"vocab_size": 70_001})
    weights = dict(dummy_weights(spec, 1, torch.float32))
    arrived = dict(to_device(weights.items(), dtype, torch.device("cuda")))
    assert all(torch.equal(arrived[name].cpu(), weights[name].to(dtype)) for name in weights)


def test_reading_holds_no_more_than_what_is_read_ahead() -> None:
    sizes = 40 * [AHEAD_BYTES // 8]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in to_device(((str(i), torch.ones(size // 4)) for i, size in enumerate(sizes)), torch.float32,
                       torch.device("cuda")):  # fmt: skip
        pass
    assert torch.cuda.max_memory_allocated() - before < 1.5 * AHEAD_BYTES


def test_nothing_is_compiled_once_requests_come(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(load(folder))
    rng = random.Random(3)
    with caplog.at_level(logging.WARNING):
        for count in (1, 2, 3, 7, 16, 40):
            prompts = [[rng.randrange(1000) for _ in range(rng.randint(1, 700))] for _ in range(count)]
            pipeline.generate(prompts, SamplingParams(max_tokens=20, temperature=0.0))
    assert [vars(record) for record in caplog.records] == []


def test_what_the_start_of_another_engine_compiles_is_not_late(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for dtype in ("bfloat16", "float16"):
            load(folder, dtype=dtype)
    assert [vars(record) for record in caplog.records] == []


def test_a_kernel_compiled_late_is_a_warning(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    from octavo.kernels.gpu.rms_norm import rms_norm

    load(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rms_norm(torch.randn(3, 8191, device="cuda", dtype=torch.float16), None, 1e-6)
    assert [vars(record)["kernel"] for record in caplog.records] == ["_rms_norm"]


def test_nearly_all_memory_goes_to_kv_and_the_largest_steps_still_run(folder: str) -> None:
    torch.cuda.empty_cache()
    free_before, total = torch.cuda.mem_get_info()
    engine = load(folder, num_kv_blocks=None, max_num_seqs=1024, max_num_batched_tokens=8192)
    kv = engine.info.num_blocks * QWEN3["num_hidden_layers"] * 2 * 2 * 64 * 64 * 2
    assert kv >= 0.95 * (free_before - 2 * 2**30)
    assert torch.cuda.mem_get_info()[0] < 0.03 * total
    prompts = [[place % 1000 for place in range(1500)] for _ in range(64)]
    assert len(Pipeline(engine).generate(prompts, SamplingParams(max_tokens=5, temperature=0.0))) == 64


def test_steps_wait_for_what_the_start_fills(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the device is late with it, as where others share it."""
    from octavo.services.executor.gpu import load as gpu_load

    prompts, params = [[place % 1000 for place in range(100)]] * 3, SamplingParams(max_tokens=20, temperature=0.0)
    expected = Pipeline(load(folder)).generate(prompts, params)

    def late(*args: Any) -> Any:
        torch.cuda._sleep(10**10)  # cycles: some five seconds, for a start that finds its kernels compiled
        return plan(*args)

    plan = gpu_load._plan
    monkeypatch.setattr(gpu_load, "_plan", late)
    assert Pipeline(load(folder)).generate(prompts, params) == expected


def test_too_many_kv_blocks_are_refused_with_the_flag(folder: str) -> None:
    with pytest.raises(ConfigError, match="lower .*--num-kv-blocks"):
        load(folder, num_kv_blocks=10_000_000)


def test_a_fault_of_the_device_ends_the_process_with_its_reason(folder: str, tmp_path: Path) -> None:
    flags = [folder, "--device", "cuda", "--load-format", "dummy", "--num-kv-blocks", "64"]
    flags += ["--runtime-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", FAULT, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "StepFailed 41" in done.stdout
    assert "step failed" in done.stderr and "CUDA error" in done.stderr
