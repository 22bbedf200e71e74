"""/tokenize and /detokenize of a running server, beside what the same texts count as in requests."""

import json
import urllib.error

import pytest
from tests.tools.server import Server

HELLO = "Hello, how are you?"
HELLO_IDS = [19556, 28, 638, 359, 346, 47]  # SmolLM2's tokenizer.json, by the tokenizers library
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HELLO}]
RENDERED = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{HELLO}<|im_end|>\n"
GENERATION_PROMPT = "<|im_start|>assistant\n"


def refusal(server: Server, path: str, body: dict[str, object]) -> tuple[str, str]:
    """What is wrong, and with which field."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(path, body)
    with caught.value as answer:
        assert answer.code == 400
        error = json.load(answer)["error"]
    return error["message"], error["param"]


def test_a_prompt_becomes_tokens_and_text_again(sim_server: Server) -> None:
    told = sim_server.post("/tokenize", {"prompt": HELLO})
    assert (told["tokens"], told["count"], told["token_strs"]) == (HELLO_IDS, 6, None)
    assert told["max_model_len"] >= 2048
    assert sim_server.post("/detokenize", {"tokens": HELLO_IDS}) == {"prompt": HELLO}
    for text in ("", "naïve 東京 🙂", "a" * 5000, "<|im_end|>"):
        tokens = sim_server.post("/tokenize", {"prompt": text, "return_token_strs": True})
        assert sim_server.post("/detokenize", {"tokens": tokens["tokens"]})["prompt"] == text
        assert len(tokens["token_strs"]) == tokens["count"] == len(tokens["tokens"])


def test_messages_become_what_a_chat_is_asked(sim_server: Server) -> None:
    for adds, behind in ((None, GENERATION_PROMPT), (True, GENERATION_PROMPT), (False, "")):
        tokens = sim_server.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": adds})["tokens"]
        assert sim_server.post("/detokenize", {"tokens": tokens})["prompt"] == RENDERED + behind
        assert tokens == sim_server.post("/tokenize", {"prompt": RENDERED + behind})["tokens"]
    asked = sim_server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
    told = sim_server.post("/tokenize", {"messages": MESSAGES})
    assert told["count"] == asked["usage"]["prompt_tokens"]


def test_what_is_wrong_is_named(sim_server: Server) -> None:
    for body in ({}, {"prompt": HELLO, "messages": MESSAGES}):
        assert refusal(sim_server, "/tokenize", body)[1] == "prompt"
    assert refusal(sim_server, "/tokenize", {"messages": []})[1] == "messages"
    message, param = refusal(sim_server, "/detokenize", {"tokens": [5, 10**6]})
    assert param == "tokens" and "token id 1000000 is outside" in message and "0 to 49151" in message
