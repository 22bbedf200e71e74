"""Models from a folder: one with nothing but a config, and a small one with its weights and tokenizer."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from tests.tools.server import running

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    flags = ("--load-format", "dummy", "--served-model-name", "dummy")
    with running(str(folder), *flags) as server, connect(server.url) as client:
        yield client


def connect(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=400)


def test_a_model_without_weights_and_tokenizer_takes_token_ids(dummy: OpenAI) -> None:
    answer = dummy.completions.create(
        model="dummy",
        prompt=[5, 6, 7],
        max_tokens=6,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    token_ids = answer.choices[0].model_dump()["token_ids"]
    assert len(token_ids) == 6
    assert all(0 <= token < CONFIG["vocab_size"] for token in token_ids)
    assert answer.choices[0].text == ""
    assert answer.usage is not None and answer.usage.prompt_tokens == 3


def test_its_dummy_weights_are_the_same_for_every_request(dummy: OpenAI) -> None:
    fields = {"return_token_ids": True, "ignore_eos": True}
    first, second = (
        dummy.completions.create(model="dummy", prompt=[9, 8], max_tokens=8, temperature=0, extra_body=fields)
        for _ in range(2)
    )
    assert first.choices[0].model_dump()["token_ids"] == second.choices[0].model_dump()["token_ids"]


def test_a_text_for_it_is_refused_with_the_reason(dummy: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt: this model has no tokenizer; send token ids"):
        dummy.completions.create(model="dummy", prompt="Hello")


def test_a_conversation_for_it_is_refused_with_the_reason(dummy: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages: this model has no tokenizer"):
        dummy.chat.completions.create(model="dummy", messages=[{"role": "user", "content": "Hello"}])


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no model at {STORIES}")
def test_a_small_model_in_a_folder_tells_its_known_story() -> None:
    story = (STORIES / "GOLDEN_greedy.txt").read_text()
    begin = "Once upon a time"
    flags = ("--dtype", "float32", "--served-model-name", "stories")
    with running(str(STORIES), *flags) as server, connect(server.url) as client:
        told = client.completions.create(model="stories", prompt=begin, max_tokens=200, temperature=0)
    text = begin + told.choices[0].text
    assert len(text) > 300
    assert story.startswith(text) or text.startswith(story.rstrip())
