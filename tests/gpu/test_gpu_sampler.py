"""The sampler on a GPU against `octavo.kernels.sampling`, and against distributions and logprobs computed by torch."""

import math
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.kernels import sampling
from octavo.services.executor.sampler import Sampler, logprobs_of
from octavo.shared.messages import NewRequest, pack
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.2},
    {"temperature": 1e-3, "top_p": 0.5},
    {"temperature": 1e3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 2.0, "top_k": 10**9, "top_p": 0.999},
    {"temperature": 0.6, "min_p": 0.01},
]
EDGE = 1e-5  # of the probability: within it of a limit, or of a token's end, float32 may decide otherwise


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def params_of(row: int, **changes: Any) -> SamplingParams:
    return SamplingParams(10, seed=row * 7919 + 2**40, **{**CASES[row % len(CASES)], **changes})


def on_gpu(logits: Tensor, params: list[SamplingParams], positions: list[int], tables: list[Tensor | None]) -> Tensor:
    """The tokens of the kernels, for rows in slots in random order; the slots' last tokens are checked."""
    from octavo.kernels.gpu.sampler_state import COLUMNS
    from octavo.kernels.gpu.sampling import sample
    from octavo.services.executor.gpu.sampler import state_row

    rows = len(logits)
    slots = torch.randperm(rows)
    state = torch.zeros(rows + 1, COLUMNS, dtype=torch.int32)
    for row, table in enumerate(tables):
        state[slots[row]] = torch.tensor(
            state_row(params[row], 0 if table is None else table.data_ptr()), dtype=torch.int32
        )
    out = torch.full((rows,), -1, dtype=torch.int32, device=logits.device)
    last = torch.full((rows + 1,), -1, dtype=torch.int32, device=logits.device)
    before = torch.tensor(positions, dtype=torch.int32, device=logits.device) - 1
    sample(logits, state.to(logits.device), slots.int().to(logits.device), before, out, last)
    assert torch.equal(last[slots.to(last.device)], out) and last[-1] == -1
    return out.cpu()


def check(logits: Tensor, params: list[SamplingParams], tables: list[Tensor | None] | None = None) -> None:
    """Every row's token is the reference's, or lies at an edge so near that float32 cannot tell."""
    rows = len(logits)
    positions = [1 + 3 * row for row in range(rows)]
    tables = tables or [None] * rows
    counts = [None if table is None else table.cpu().clone() for table in tables]
    tokens = on_gpu(logits, params, positions, tables)
    for row, (each, count) in enumerate(zip(params, counts, strict=True)):
        exact = logits[row].cpu().float()
        if count is not None:
            factors = [torch.tensor([x]) for x in (each.repetition_penalty, each.frequency_penalty)]
            exact = sampling.penalise(exact[None], count[None], *factors, torch.tensor([each.presence_penalty]))[0]
        accepted = _accepted(exact, each, positions[row])
        assert int(tokens[row]) in accepted, f"row {row}: {tokens[row]} is not of {accepted}; {each}"
        if count is not None:
            count[tokens[row]] += sampling.GENERATED
            assert torch.equal(tables[row].cpu(), count)  # type: ignore[union-attr]  # as count is not None


def _accepted(logits: Tensor, params: SamplingParams, position: int) -> set[int]:
    """The reference's token, and those at a distance of EDGE from its draw."""
    if params.is_greedy:
        return {int(logits.argmax())}
    distances = logits.max() - logits
    weights = (-distances.double() / params.temperature).exp()
    weights[distances > sampling.max_distance(params.temperature, params.min_p)] = 0.0
    ordered, order = distances.sort()
    if 0 < params.top_k < len(logits):
        weights[distances > ordered[params.top_k - 1]] = 0.0
    running = weights[order].cumsum(0)
    before = torch.cat((torch.zeros(1, dtype=torch.float64), running[:-1])) / running[-1]
    top_p = torch.tensor(params.top_p).double()
    accepted = set()
    for moved in (-EDGE, 0.0, EDGE):
        kept = weights.clone()
        if params.top_p < 1:
            last = ordered[(before < top_p + moved).nonzero().max()] if top_p + moved > 0 else ordered[0]
            kept[distances > last] = 0.0
        ends = kept.cumsum(0)
        draw = sampling.uniform(params.seed, position)
        for near in (draw - EDGE, draw, draw + EDGE):
            aim = min(max(near, 0.0), 1 - 1e-12) * ends[-1]
            accepted.add(int(torch.searchsorted(ends, aim, right=True)))
    return accepted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "vocab, rows",
    [(1000, 300), (4096, 60), (4097, 26), (49152, 60), (128256, 60), (151936, 60), (17, 26), (151935, 13)],
)
@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
def test_tokens_are_the_references(vocab: int, rows: int, dtype: torch.dtype, spread: float) -> None:
    # Every second row of a wider tensor: behind a row's end lies what must not be chosen.
    padded = torch.full((rows, 2, vocab + 24), 1e4, device="cuda").to(dtype)
    logits = padded[:, 0, :vocab]
    logits.copy_(torch.randn(rows, vocab, device="cuda") * spread)
    check(logits, [params_of(row) for row in range(rows)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, vocab", [(1, 151936), (5, 49152), (33, 100), (2, 4097)])
def test_greedy_takes_the_first_of_the_most_likely(rows: int, vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randn(rows, vocab, device="cuda").to(dtype)
    logits[:, vocab // 3] = logits[:, vocab // 2] = 100.0
    tokens = on_gpu(logits, [SamplingParams(1, temperature=0.0)] * rows, [1] * rows, [None] * rows)
    assert tokens.tolist() == [vocab // 3] * rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_and_minus_infinity(dtype: torch.dtype) -> None:
    vocab, rows = 9001, 39
    params = [params_of(row) for row in range(rows)]
    rounded = (torch.randn(rows, vocab, device="cuda") * 2).round().to(dtype)
    check(rounded, params)
    rounded[:, ::3] = -math.inf
    check(rounded, params)
    rounded[:, :5000] = -math.inf  # a whole block of the first pass
    check(rounded, params)
    check(torch.zeros(rows, vocab, device="cuda").to(dtype), params)
    one = torch.full((rows, vocab), -math.inf, device="cuda").to(dtype)
    one[:, 8191] = 3.0
    assert on_gpu(one, params, [1] * rows, [None] * rows).tolist() == [8191] * rows


def test_a_row_without_a_number_still_gives_a_token_of_the_vocabulary() -> None:
    rows, vocab = 26, 5000
    for value in (math.nan, -math.inf, math.inf):
        logits = torch.full((rows, vocab), value, device="cuda")
        tokens = on_gpu(logits, [params_of(row) for row in range(rows)], [1] * rows, [None] * rows)
        assert tokens.min() >= 0 and tokens.max() < vocab


@pytest.mark.parametrize("dtype", DTYPES)
def test_penalties(dtype: torch.dtype) -> None:
    rows, vocab = 52, 9001
    logits = torch.randn(rows, vocab, device="cuda").to(dtype) * 2
    params, tables = [], []
    for row in range(rows):
        token_ids = torch.randint(0, vocab, (600,))
        token_ids[300:] = token_ids[300:] % 50  # often the same
        params.append(params_of(row, repetition_penalty=1.3, frequency_penalty=0.2 - row / 100, presence_penalty=0.5))
        tables.append(sampling.count_tokens(token_ids, 300, vocab).cuda() if row % 3 else None)
    check(logits, params, tables)


def test_the_distribution_is_the_truncated_softmax() -> None:
    draws, logits = 20_000, torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0])
    weights = (logits.double() / 0.7).exp()
    assert weights[:4].sum() < 0.95 * weights.sum() < weights[:5].sum()
    kept = weights[:5] / weights[:5].sum()
    params = [SamplingParams(1, temperature=0.7, top_p=0.95, seed=3)] * draws
    tokens = on_gpu(logits.cuda().expand(draws, -1), params, list(range(1, draws + 1)), [None] * draws)
    counts = torch.bincount(tokens, minlength=8)
    assert counts[5:].sum() == 0
    squares = (counts[:5] - draws * kept) ** 2 / (draws * kept)
    assert squares.sum() < 23.5, "chi-square of 4 degrees of freedom exceeds this once in 10,000"


def test_the_distribution_over_a_large_vocabulary() -> None:
    draws, vocab, bins = 20_000, 49152, 64
    logits = torch.randn(1, vocab, device="cuda") * 2
    params = [SamplingParams(1, temperature=1.0, seed=4)] * draws
    tokens = on_gpu(logits.expand(draws, -1), params, list(range(1, draws + 1)), [None] * draws)
    expected = logits[0].double().softmax(0).cpu().view(bins, -1).sum(1) * draws
    counts = torch.bincount(tokens // (vocab // bins), minlength=bins)
    assert ((counts - expected) ** 2 / expected).sum() < 112, "63 degrees of freedom: once in 10,000"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [31, 64, 5000, 151936])
def test_masked_rows(vocab: int, dtype: torch.dtype) -> None:
    check_masked_rows(vocab, dtype, "cuda")


def check_masked_rows(vocab: int, dtype: torch.dtype, device: str) -> None:
    """Some of the rows, each behind a mask of its own, against the masks of the CPU."""
    from octavo.kernels.gpu.masks import FORBIDDEN, masked_rows
    from octavo.kernels.masks import apply_masks

    wide = torch.randn(6, vocab + 8).to(dtype)
    rows = torch.tensor([4, 0, 5])
    masks = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), dtype=torch.int64).int()
    masks[1] = -1
    out = masked_rows(wide.to(device)[:, :vocab], rows.to(device), masks.to(device)).cpu()
    expected = wide[rows, :vocab].float()
    apply_masks(expected, masks)
    assert torch.equal(out, expected.masked_fill(expected == -math.inf, FORBIDDEN.value))


def test_a_token_depends_on_no_other_row() -> None:
    logits = torch.randn(40, 49152, device="cuda", dtype=torch.bfloat16)
    params = [params_of(row) for row in range(40)]
    together = on_gpu(logits, params, list(range(1, 41)), [None] * 40)
    alone = [on_gpu(logits[row : row + 1], params[row : row + 1], [row + 1], [None]) for row in range(40)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, vocab", [(1, 151936), (40, 49152), (7, 1000), (3, 4097)])
def test_logprobs(rows: int, vocab: int, dtype: torch.dtype) -> None:
    from octavo.kernels.gpu.logprobs import logprobs
    from octavo.kernels.gpu.sampler_state import COLUMNS
    from octavo.services.executor.gpu.sampler import state_row

    logits = (torch.randn(rows, vocab, device="cuda") * 3).to(dtype)
    logits[:, ::5] = -math.inf
    logits[:, 700] = logits[:, 1] = logits.amax()  # a tie at the top
    wanted = [None if row % 4 == 1 else (row * 3 + 5) % 21 for row in range(rows)]
    state = torch.zeros(rows, COLUMNS, dtype=torch.int32)
    for row, number in enumerate(wanted):
        state[row] = torch.tensor(state_row(SamplingParams(1, logprobs=number)), dtype=torch.int32)
    slots, tokens = torch.arange(rows, device="cuda").int(), torch.randint(1, 5, (rows,), device="cuda").int()
    chosen, top = torch.full((rows,), 7.0, device="cuda"), torch.full((rows, 20), 7.0, device="cuda")
    top_ids = torch.full((rows, 20), -1, device="cuda").int()
    logprobs(logits, state.cuda(), slots, tokens, chosen, top, top_ids)
    exact = logits.double().log_softmax(-1)
    for row, number in enumerate(wanted):
        count = number or 0
        assert (top[row, count:] == 7.0).all() and (top_ids[row, count:] == -1).all()
        if number is None:
            assert chosen[row] == 7.0
            continue
        assert abs(chosen[row] - exact[row, tokens[row]]) < 1e-5
        values = exact[row].tolist()
        ids = sorted(range(vocab), key=lambda token: (-values[token], token))[:count]
        assert top_ids[row, :count].tolist() == ids
        assert torch.allclose(top[row, :count].double(), exact[row].topk(count).values, atol=1e-5)
        assert torch.allclose(exact[row, top_ids[row, :count].long()], top[row, :count].double(), atol=1e-5)


def test_the_sampler_of_the_engine_is_that_of_the_cpu() -> None:
    """Twelve tokens of requests with all kinds of parameters, fed back: counts, positions and logprobs included."""
    from octavo.services.executor.gpu.sampler import GpuSampler
    from octavo.shared.messages import ModelInfo

    vocab, rows = 3000, 16
    info = ModelInfo(vocab, 100, 64, 10, rows, 100, "cuda", "float32")
    ours, theirs = GpuSampler(info, torch.device("cuda"), 2), Sampler(vocab)
    params = [
        params_of(row, repetition_penalty=1.2, presence_penalty=0.4, logprobs=row) if row % 2 else params_of(row)
        for row in range(rows)
    ]
    new = [NewRequest(row, pack(range(row, row + 20)), 0, b"", each, 15) for row, each in enumerate(params)]
    ours.write(torch.arange(rows, device="cuda").int(), torch.tensor(ours.admit(new), device="cuda").int())
    theirs.admit(new)
    slots, tokens = torch.arange(rows, device="cuda").int(), torch.zeros(rows, device="cuda").int()
    last = torch.zeros(rows + 1, device="cuda").int()
    for position in range(20, 32):
        logits = torch.randn(rows, vocab) * 2
        positions = torch.full((rows,), position - 1, device="cuda").int()
        ours.choose(logits.cuda(), slots, positions, tokens, last)
        pending = ours.fetch(0, list(range(rows)))
        expected = theirs.choose(logits, list(range(rows)), params, [position] * rows)
        assert tokens.tolist() == expected.tolist()
        torch.cuda.synchronize()
        assert pending is not None
        told, exact = pending.by_slot(), logprobs_of(logits, expected, list(range(rows)), params)
        assert told.keys() == exact.keys() == set(range(1, rows, 2))
        for slot in told:
            form = f"<{1 + slot}f{slot}i"
            mine, theirs_ = struct.unpack(form, told[slot]), struct.unpack(form, exact[slot])
            assert mine[1 + slot :] == theirs_[1 + slot :]
            assert mine == pytest.approx(theirs_, abs=1e-5)
