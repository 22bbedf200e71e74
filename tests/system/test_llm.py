"""`LLM` and `AsyncLLM`: every token compared with the oracle, errors, and that nothing is left of them."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no type information
import pytest
from benchmarks.streams import DEFAULT_VOCAB
from tests.tools.server import is_alive, kill, wait_until

from octavo import LLM, AsyncLLM, RequestOutput, SamplingParams
from octavo.shared.errors import ConfigError, InvalidRequest, ModelError
from octavo.shared.oracle import expected_tokens

NUM_PROMPTS = 1500
END_S = 30.0


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="sim", max_model_len=512) as llm:
        yield llm


def tokens(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def test_thousands_of_prompts_are_answered_in_their_order(llm: LLM) -> None:
    prompts = [[7, 8, 9 + number % 50, number] for number in range(NUM_PROMPTS)]
    lengths = [1 + number % 5 for number in range(NUM_PROMPTS)]

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], [params(length) for length in lengths], use_tqdm=False
    )

    assert [each.prompt_token_ids for each in outputs] == prompts
    assert [tokens(each) for each in outputs] == [
        expected_tokens(prompt, length, DEFAULT_VOCAB) for prompt, length in zip(prompts, lengths, strict=True)
    ]
    assert all(each.finished and each.outputs[0].finish_reason == "length" for each in outputs)


def test_a_prompt_may_have_any_of_its_forms(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    [one] = llm.generate("Hello there", params(4))
    ids = one.prompt_token_ids

    outputs = llm.generate(["Hello there", {"prompt": "Hello there"}, {"prompt_token_ids": ids}, ids], params(4))

    assert [each.prompt for each in outputs] == ["Hello there", "Hello there", None, None]
    assert [tokens(each) for each in outputs] == 4 * [expected_tokens(ids, 4, DEFAULT_VOCAB)]
    assert {each.outputs[0].text for each in outputs} == {one.outputs[0].text}
    assert llm.generate([]) == []
    assert "4/4" in capsys.readouterr().err  # the progress bar


def test_parameters_and_choices_reach_the_server(llm: LLM) -> None:
    ids = expected_tokens([5, 6], 10, DEFAULT_VOCAB)
    [whole] = llm.generate([[5, 6]], params(10))
    piece = whole.outputs[0].text[3:9]

    [stopped] = llm.generate([[5, 6]], SamplingParams(n=3, max_tokens=10, ignore_eos=True, stop=piece))
    [silent] = llm.generate([[5, 6]], SamplingParams(max_tokens=10, ignore_eos=True, detokenize=False))
    [long] = llm.generate([[5, 6]], SamplingParams(max_tokens=None, ignore_eos=True))
    [default] = llm.generate([[5, 6]])

    assert [each.index for each in stopped.outputs] == [0, 1, 2]
    assert {each.text for each in stopped.outputs} == {whole.outputs[0].text[:3]}
    assert {each.finish_reason for each in stopped.outputs} == {"stop"}
    assert (silent.outputs[0].text, tokens(silent)) == ("", ids)
    assert len(tokens(long)) == 512 - 2
    assert len(tokens(default)) == 16


def test_conversations_are_answered_one_or_many(llm: LLM) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "Good bye")]

    [one] = llm.chat(chats[0], params(5))
    several = llm.chat(chats, [params(5), params(6)])

    assert tokens(one) == tokens(several[0]) == expected_tokens(one.prompt_token_ids, 5, DEFAULT_VOCAB)
    assert tokens(several[1]) == expected_tokens(several[1].prompt_token_ids, 6, DEFAULT_VOCAB)
    assert one.outputs[0].message == {"role": "assistant", "content": one.outputs[0].text, "refusal": None}


def test_errors_name_the_prompt_and_leave_the_engine_usable(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="^prompt 2: prompt: it has 600 tokens; this model takes 512"):
        llm.generate([[1], [2], [3] * 600], params(4))
    with pytest.raises(InvalidRequest, match="^prompt 1: temperature: "):
        llm.generate([[1], [2]], [params(4), SamplingParams(temperature=-1.0)])
    with pytest.raises(ValueError, match="1 sampling_params for 2 prompts"):
        llm.generate([[1], [2]], [params(4)])
    with pytest.raises(TypeError, match="a prompt is a text"):
        llm.generate([3.5])  # type: ignore[list-item]
    assert len(llm.generate([[1], [2]], params(4))) == 2


def test_settings_that_cannot_be_are_named_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="no setting max_model_length: the nearest is max_model_len"):
        LLM(max_model_length=512)
    with pytest.raises(ConfigError, match="enforce_eager: .*leave it out"):
        LLM(enforce_eager=True)
    with pytest.raises(ConfigError, match="max_model_len 0: expected `int` >= 1"):
        LLM(max_model_len=0)
    with pytest.raises(ConfigError, match="port is no setting"):
        LLM(port=9000)


def test_a_model_that_is_not_there_is_an_error_and_leaves_nothing() -> None:
    before = engines(psutil.Process())
    with pytest.raises(ModelError, match="there is no folder or file /no/such/model"):
        LLM("/no/such/model")
    assert engines(psutil.Process()) == before


async def consume(llm: AsyncLLM, begun: asyncio.Event) -> None:
    async for _ in llm.generate([7], params(500)):
        begun.set()


def test_outputs_are_streamed_and_leaving_the_loop_ends_the_request() -> None:
    async def use() -> None:
        async with AsyncLLM(device="sim", max_model_len=512, sim_step_ms=100, max_num_seqs=1) as llm:
            seen = [output async for output in llm.generate([5, 6], params(6), request_id="mine")]
            ids = expected_tokens([5, 6], 6, DEFAULT_VOCAB)
            assert [tokens(each) for each in seen][-1] == ids
            assert all(tokens(each) == ids[: len(tokens(each))] for each in seen)
            assert len(seen) >= 6 and seen[-1].request_id == "mine"
            assert [each.finished for each in seen] == [False] * (len(seen) - 1) + [True]
            assert seen[-1].outputs[0].text.startswith(seen[2].outputs[0].text)

            # Each would take 50 s, and there is room for one.
            closed = llm.generate([5, 6], params(500))
            await anext(closed)
            await closed.aclose()
            begun = asyncio.Event()
            cancelled = asyncio.create_task(consume(llm, begun))
            await begun.wait()
            cancelled.cancel()
            await asyncio.wait([cancelled])
            began = time.monotonic()
            *_, last = [each async for each in llm.chat([{"role": "user", "content": "Hello"}], params(3))]
            assert time.monotonic() - began < 25
            assert tokens(last) == expected_tokens(last.prompt_token_ids, 3, DEFAULT_VOCAB)

    asyncio.run(use())


PROGRAM = """
import sys, threading, time
from octavo import LLM, SamplingParams

def start():
    global llm
    llm = LLM(device="sim", max_model_len=512)

thread = threading.Thread(target=start)  # the engine outlives the thread that made it
thread.start()
thread.join()
print(llm.generate("Hello", SamplingParams(max_tokens=3), use_tqdm=False)[0].outputs[0].token_ids, flush=True)
if sys.argv[1] == "wait":
    time.sleep(1000)
if sys.argv[1] == "forget":
    del llm
    print("forgotten", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For sockets, whose paths have a hundred characters at most: pytest's own folders may be deep ones."""
    with tempfile.TemporaryDirectory(prefix="ot-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("end", ["exit", "forget", "wait"])
def test_nothing_is_left_when_a_program_ends_forgets_its_engine_or_is_killed(end: str, short_folder: Path) -> None:
    program = psutil.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, end],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(short_folder)},
    )  # fmt: skip
    try:
        assert program.stdout.readline().startswith(b"[")
        family = engines(program)
        if end == "wait":
            assert len(family) == 5  # four services, and what watches them
            program.kill()
        if end == "forget":
            assert program.stdout.readline() == b"forgotten\n"
        wait_until(lambda: not any(map(is_alive, family)), "the processes of the engine end", END_S)
        wait_until(lambda: list(short_folder.glob("octavo-*")) == [], "the folder of its sockets is removed", END_S)
        if end == "exit":
            assert program.wait(END_S) == 0
            assert program.stderr.read() == b""
    finally:
        kill([program, *engines(program)] if is_alive(program) else [])
        program.communicate()


def engines(parent: psutil.Process) -> list[psutil.Process]:
    """Its children and theirs that are ours."""
    children = parent.children(recursive=True) if is_alive(parent) else []
    return [each for each in children if is_alive(each) and "octavo.services" in " ".join(each.cmdline())]


def test_importing_octavo_costs_nothing() -> None:
    program = "import sys, octavo; print(*{'torch', 'aiohttp', 'msgspec', 'asyncio', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_serving_imports_nothing_that_only_other_commands_need() -> None:
    program = (
        "import sys, octavo.services.launch, octavo.services.gateway.__main__; from octavo.shared.config import parse; "
        "parse(['--device', 'sim'], '', ''); print(*{'yaml', 'tqdm', 'shtab', 'readline'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
