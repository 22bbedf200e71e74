"""API keys: where they come from, how clients bring them, and where they must never show."""

import asyncio
import logging
import subprocess
from pathlib import Path

import pytest
from tests.gateway.harness import running, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer

from octavo.shared.config import API_KEY_VARIABLE, Config, parse, to_flags
from octavo.shared.errors import ConfigError

KEYS = ["sk-one", "sk-two"]
FORMS = [("Authorization", "Bearer {}"), ("Authorization", "bearer  {}"), ("X-Api-Key", "{}"), ("x-api-key", " {} ")]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


def keys_of(*argv: str) -> list[str]:
    return parse(argv, "octavo serve", "").api_keys


def test_each_of_several_keys_opens_in_both_headers_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=",".join(KEYS)) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                await until_ready(server.client)
                for key in KEYS:
                    for header, form in FORMS:
                        headers = {header: form.format(key)}
                        response = await server.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
                        assert response.status == 200
                salts = [generate.salt for generate in tokenizer.generates()]
                assert len(set(salts[:4])) == len(set(salts[4:])) == 1
                assert salts[0] != salts[4]

    asyncio.run(scenario())


def test_a_wrong_key_is_refused_in_both_headers_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key="sk-one", access_log=True) as server:
            for key in ("sk-on", "sk-one1", "SK-ONE", "sk-one,sk-one"):
                for header, form in FORMS:
                    response = await server.client.get("/v1/models?key=sk-one", headers={header: form.format(key)})
                    error = (await response.json())["error"]
                    assert (response.status, error["code"]) == (401, "invalid_api_key")
                    assert key not in error["message"]
            missing = await server.client.get("/v1/models", headers={"X-Api-Key": " "})
            assert (await missing.json())["error"]["code"] == "missing_api_key"

    with caplog.at_level(logging.DEBUG, "octavo"):
        asyncio.run(scenario())
    assert "sk-" not in " ".join(str(vars(record)).lower() for record in caplog.records)


def test_flags_and_a_file_add_up_and_the_variable_is_for_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nsk-a\n\n  sk-b#1  \r\n#sk-c\n")
    assert keys_of() == []
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-v, sk-w,")
    assert keys_of() == ["sk-v", "sk-w"]
    assert keys_of("--api-key", "x", "--api-key", "y") == ["x", "y"]
    assert keys_of("--api-key-file", str(file)) == ["sk-a", "sk-b#1"]
    assert keys_of("--api-key", "x", "--api-key-file", str(file)) == ["x", "sk-a", "sk-b#1"]


def test_a_key_does_not_swallow_the_model() -> None:
    config = parse(["--api-key", "x", "org/model"], "octavo serve", "")
    assert (config.api_key, config.model) == (["x"], "org/model")


def test_no_key_is_on_the_command_line_of_a_child(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-secret-2")
    config = parse(["--api-key", "sk-secret-1", "--api-key-file", str(file), "--port", "1"], "octavo serve", "")
    assert to_flags(config) == ["--port", "1"]


@pytest.mark.parametrize("key", ["", "two words", "a,b", "tab\t", "schlüssel", "new\nline"])
def test_a_key_that_no_client_could_send_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match="API key 2 of 2") as caught:
        Config(api_key=["good", key])
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "holds no key"), (b"# none\n", "holds no key"), (b"\xff\xfe", "it is no text")]
)
def test_a_key_file_without_keys_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--api-key-file {file}.*{reason}"):
        keys_of("--api-key-file", str(file))
    with pytest.raises(ConfigError, match="No such file"):
        keys_of("--api-key-file", str(file) + "x")


def test_keys_that_no_variable_could_carry_are_refused_and_the_longest_list_starts_a_process() -> None:
    with pytest.raises(ConfigError, match="at most 100000"):
        Config(api_key=["k" * 99] * 1001)
    keys = Config(api_key=["k" * 99] * 1000).api_keys
    subprocess.run(["true"], env={API_KEY_VARIABLE: ",".join(keys), "PATH": "/usr/bin:/bin"}, check=True, timeout=60)


def test_beyond_loopback_a_key_of_any_source_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-a")
    assert keys_of("--host", "0.0.0.0", "--api-key-file", str(file)) == ["sk-a"]
    with pytest.raises(ConfigError, match="set --api-key, or --insecure"):
        keys_of("--host", "0.0.0.0")
    with pytest.raises(ConfigError, match="set --api-key, or --insecure"):
        keys_of("--host", "0.0.0.0", "--ssl-certfile", str(file))
