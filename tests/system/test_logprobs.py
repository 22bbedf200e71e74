"""Logprobs over HTTP against transformers: of completions and prompts, in chunks, from the prefix cache, streamed."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tools.server import Server, running, wait_until
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 300
TOLERANCE = 1e-3
PROMPT = [(7 * place * place + 3) % VOCAB for place in range(70)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    config = CONFIG_MAPPING["llama"](
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ("--device", "cpu", "--dtype", "float32", "--max-num-batched-tokens", "24", "--max-model-len", "200")
    with running(str(folder), *flags, "--num-kv-blocks", "64") as server:
        yield server


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).float()


def post(server: Server, **body: object) -> Any:
    return server.post("/v1/completions", body)


def exact(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Logprobs of all tokens behind each position, [tokens, vocab]."""
    with torch.inference_mode():
        return torch.Tensor(model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1))


def check(told: dict[str, Any], token_ids: list[int], every: torch.Tensor, first: int) -> None:
    """What is told of token_ids[first:] is what the model says of each behind those before it."""
    assert len(told["tokens"]) == len(token_ids) - first
    for place in range(first, len(token_ids)):
        logprob, top = told["token_logprobs"][place - first], told["top_logprobs"][place - first]
        if place == 0:
            assert logprob is None and top is None
            continue
        of_place = every[place - 1]
        assert logprob == pytest.approx(float(of_place[token_ids[place]]), abs=TOLERANCE)
        wanted = {f"token_id:{token}": float(of_place[token]) for token in of_place.topk(3).indices.tolist()}
        wanted[f"token_id:{token_ids[place]}"] = float(of_place[token_ids[place]])
        assert top == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_and_its_prompt_have_the_logprobs_of_transformers(
    server: Server, model: Any, temperature: float
) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 9, "temperature": temperature, "seed": 1, "return_token_ids": True}
    before = server.metric("vllm:prefix_cache_hits_total")
    plain = post(server, **fields, logprobs=3)["choices"][0]
    echoed = post(server, **fields, logprobs=3, echo=True)["choices"][0]
    again = post(server, **fields, logprobs=3)["choices"][0]
    assert plain["token_ids"] == echoed["token_ids"] == again["token_ids"]
    wait_until(lambda: server.metric("vllm:prefix_cache_hits_total") > before, "the last one came from the cache")
    token_ids = PROMPT + plain["token_ids"]
    every = exact(model, token_ids)
    for choice in (plain, again):
        check(choice["logprobs"], token_ids, every, len(PROMPT))
    check(echoed["logprobs"], token_ids, every, 0)


def test_only_the_prompt_is_told_where_no_token_is_wanted(server: Server, model: Any) -> None:
    choice = post(server, prompt=PROMPT, max_tokens=0, echo=True, logprobs=3, return_token_ids=True)["choices"][0]
    check(choice["logprobs"], PROMPT, exact(model, PROMPT), 0)
    assert (choice["token_ids"], choice["finish_reason"]) == ([], "length")


def test_prompt_logprobs_name_each_token_and_its_rank(server: Server, model: Any) -> None:
    told = post(server, prompt=PROMPT, max_tokens=1, prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    every = exact(model, PROMPT)
    assert told[0] is None and len(told) == len(PROMPT)
    for place, entry in enumerate(told[1:], 1):
        own = entry[str(PROMPT[place])]
        assert own["logprob"] == pytest.approx(float(every[place - 1, PROMPT[place]]), abs=TOLERANCE)
        assert own["rank"] == 1 + int((every[place - 1] > every[place - 1, PROMPT[place]]).sum())
        best = every[place - 1].topk(2).indices.tolist()
        assert [entry[str(token)]["rank"] for token in best] == [1, 2]


def test_streamed_logprobs_are_those_of_the_whole_answer(server: Server) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 9, "temperature": 1.0, "seed": 2, "logprobs": 2, "echo": True}
    whole = post(server, **fields)["choices"][0]["logprobs"]
    body = json.dumps({**fields, "stream": True}).encode()
    streamed: dict[str, list[Any]] = {name: [] for name in whole}
    with urllib.request.urlopen(urllib.request.Request(server.url + "/v1/completions", body), timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                told = json.loads(line[6:])["choices"][0]["logprobs"]
                for name in streamed if told else ():
                    streamed[name] += told[name]
    assert streamed == whole


def test_the_best_of_several_is_the_likeliest(server: Server, model: Any) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 5, "temperature": 1.5, "seed": 3, "return_token_ids": True}
    all_ids = [choice["token_ids"] for choice in post(server, **fields, n=4)["choices"]]
    [best] = post(server, **fields, n=1, best_of=4)["choices"]

    def score(token_ids: list[int]) -> float:
        every = exact(model, PROMPT + token_ids)
        return sum(float(every[len(PROMPT) - 1 + place, token]) for place, token in enumerate(token_ids))

    assert best["token_ids"] == max(all_ids, key=score)
    assert best["index"] == 0
