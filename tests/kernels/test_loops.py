"""The kernels against their references, on the CPU."""

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels import activation, linear, rms_norm, rope
from octavo.kernels.cache_write import cache_write
from octavo.kernels.cache_write import reference as write_reference
from octavo.kernels.decode_attention import decode_attention
from octavo.kernels.decode_attention import reference as attention_reference
from octavo.kernels.prefill_attention import prefill_attention

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (1.6e-2, 1e-2)}


def close(actual: Tensor, expected: Tensor) -> None:
    relative, absolute = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (3, 577), (5, 3, 64), (300, 576)])
def test_rms_norm_is_its_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    close(rms_norm.rms_norm(x, weight, 1e-5), rms_norm.reference(x, weight, 1e-5))
    close(rms_norm.rms_norm(x[..., ::2], None, 1e-5), rms_norm.reference(x[..., ::2], None, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh", "relu2"])
@pytest.mark.parametrize("tokens, size", [(1, 1536), (3, 17), (64, 1536)])
def test_gated_is_its_reference(tokens: int, size: int, act: str, dtype: torch.dtype) -> None:
    gate_up = (8 * torch.randn(tokens, 2 * size)).to(dtype)
    close(activation.gated(gate_up, act), activation.reference(gate_up, act))


def test_silu_of_extremes_is_a_number_and_nan_stays_nan() -> None:
    gate_up = torch.tensor([[-1e30, 1e30, -100.0, math.nan, 1.0, 1.0, 1.0, 1.0]])
    out = activation.gated(gate_up, "silu")[0]
    assert abs(float(out[0])) < 1e-6 and float(out[1]) == pytest.approx(1e30) and math.isnan(float(out[3]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [64, 16])
def test_rope_of_strided_heads_is_its_reference(dim: int, interleaved: bool, dtype: torch.dtype) -> None:
    x = torch.randn(5, 7, 64).to(dtype)[:, 1:5]
    angles = torch.rand(5, dim // 2) * 6
    cos, sin = (each[:, None].to(dtype) for each in rope.tables(angles, 1.0, interleaved))
    close(rope.rope(x, cos, sin, interleaved), rope.reference(x, angles, 1.0, interleaved))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens_first", [True, False])
def test_cache_write_changes_only_its_places(tokens_first: bool, dtype: torch.dtype) -> None:
    heads = torch.randn(4, 6, 8).to(dtype)
    expected = [torch.full((5, 2, 4, 8), torch.nan, dtype=dtype) for _ in range(2)]
    actual = [_strided(each, tokens_first) for each in expected]
    places = torch.tensor([0, 3, 4, 19])
    write_reference(heads[:, 2:4], heads[:, 4:], expected[0], expected[1], places)
    cache_write(heads[:, 2:4], heads[:, 4:], actual[0], actual[1], places)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("window, softcap", [(None, None), (5, None), (None, 30.0), (16, 30.0)])
@pytest.mark.parametrize("tokens_first", [True, False])
def test_decode_attention_reads_nothing_beyond_its_length(
    tokens_first: bool, window: int | None, softcap: float | None, group: int, dtype: torch.dtype
) -> None:
    block_size, kv_heads, head_dim = 16, 2, 40
    lengths = torch.tensor([1, 15, 16, 17, 33, 64], dtype=torch.int32)
    tables = torch.randperm(24).view(6, 4).int()
    caches = [torch.full((25, kv_heads, block_size, head_dim), torch.nan, dtype=dtype) for _ in range(2)]
    for row, length in zip(tables.tolist(), lengths.tolist(), strict=True):
        for position in range(length):
            for cache in caches:
                cache[row[position // block_size], :, position % block_size] = torch.randn(kv_heads, head_dim)
    keys, values = (_strided(each, tokens_first) for each in caches)
    q = torch.randn(6, kv_heads * group + 3, head_dim).to(dtype)[:, : kv_heads * group]
    actual = decode_attention(q, keys, values, tables, lengths, 64, 0.3, window, softcap)
    close(actual, attention_reference(q, keys, values, tables, lengths, 0.3, window, softcap))
    alone = decode_attention(q[4:5], keys, values, tables[4:5], lengths[4:5], 33, 0.3, window, softcap)
    assert torch.equal(actual[4:5], alone), "a request's attention depends on its batch"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("window, softcap", [(None, None), (5, None), (16, 30.0)])
@pytest.mark.parametrize("kind", ["sinks", "slopes", "sinks and slopes"])
def test_attention_with_sinks_and_slopes_is_its_reference(
    kind: str, window: int | None, softcap: float | None, group: int, dtype: torch.dtype
) -> None:
    lengths, chunks = [1, 16, 17, 60], [1, 16, 3, 20]
    tables = torch.randperm(16).view(4, 4).int()
    keys, values = (torch.randn(16, 2, 16, 40).to(dtype) for _ in range(2))
    heads = 2 * group
    both = {"sinks": torch.linspace(-9, 9, heads), "slopes": torch.rand(heads)}
    how = {name: each for name, each in both.items() if name in kind}
    q = torch.randn(4, heads, 40).to(dtype)
    of_requests = torch.tensor(lengths, dtype=torch.int32)
    close(
        decode_attention(q, keys, values, tables, of_requests, 60, 0.3, window, softcap, **how),
        attention_reference(q, keys, values, tables, of_requests, 0.3, window, softcap, **how),
    )
    q = torch.randn(sum(chunks), heads, 40).to(dtype)
    # A chunk is requests of one token each, whose lengths grow by one.
    of_tokens = torch.cat([torch.arange(end - n, end) + 1 for n, end in zip(chunks, lengths, strict=True)])
    of_rows = tables.repeat_interleave(torch.tensor(chunks), 0)
    close(
        prefill_attention(q, keys, values, tables, chunks, lengths, 0.3, window, softcap, **how),
        attention_reference(q, keys, values, of_rows, of_tokens, 0.3, window, softcap, **how),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 576, 960), (1, 1536, 577), (1, 7, 3), (3, 64, 4096)])
def test_linear_is_its_reference(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, inputs).to(dtype), (torch.randn(outputs, inputs) * 0.05).to(dtype)
    bias, residual = torch.randn(outputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    close(linear.few_rows_linear(x, weight, bias, residual), linear.reference(x, weight, bias, residual))
    close(linear.few_rows_linear(x, weight, None, None), linear.reference(x, weight, None, None))


def _strided(cache: Tensor, tokens_first: bool) -> Tensor:
    """A copy, [blocks, kv_heads, block_size, head_dim], in one of two orders in memory."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2) if tokens_first else cache.clone()
