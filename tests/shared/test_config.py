"""Settings from flags, files and Python, and the sentences for what is wrong with them."""

from pathlib import Path

import pytest

from octavo.shared.config import Config, from_settings, parse, to_flags
from octavo.shared.errors import ConfigError


def read(*arguments: str) -> Config:
    return parse(arguments, "octavo serve", "")


def file(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_a_flag_counts_more_than_the_file_and_the_file_more_than_the_default(tmp_path: Path) -> None:
    path = file(tmp_path, "model: of-file\nmax-model-len: 100\nmax_num_seqs: 5\nenable-prefix-caching: false\n")

    config = read("--config", path, "--max-model-len", "200")

    assert (config.model, config.max_model_len, config.max_num_seqs) == ("of-file", 200, 5)
    assert not config.enable_prefix_caching
    assert config.port == Config().port
    assert read("--config", path, "of-flag", "--enable-prefix-caching").model == "of-flag"
    assert parse(to_flags(config), "", "") == config


def test_a_list_in_a_file_may_have_one_value_or_several(tmp_path: Path) -> None:
    assert read("--config", file(tmp_path, "served-model-name: a")).served_model_name == ["a"]
    assert read("--config", file(tmp_path, "served-model-name: [a, b]")).served_model_name == ["a", "b"]
    assert read("--config", file(tmp_path, "served-model-name:")).served_model_name is None
    assert read("--config", file(tmp_path, "# nothing\n")) == read()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max-model-length: 3", "config.yaml: there is no setting 'max-model-length': the nearest is max-model-len"),
        ("trust-remote-code: true", "there is no setting 'trust-remote-code': code that comes with a model"),
        ("max-num-seqs: 0", "config.yaml: max-num-seqs 0: expected `int` >= 1"),
        ("max-num-seqs: many", "config.yaml: max-num-seqs many: expected"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", "config.yaml: max_num_seqs is given twice"),
        ("- 3", "config.yaml: it must hold lines of `setting: value`"),
        ("a: b: c", "config.yaml is not YAML: "),
    ],
)  # fmt: skip
def test_errors_of_a_file_name_it_and_the_key(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read("--config", file(tmp_path, text))
    assert sentence in str(caught.value)


def test_a_value_out_of_bounds_is_the_flags_when_the_flag_counts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^--max-num-seqs 0: "):
        read("--config", file(tmp_path, "max-num-seqs: 3"), "--max-num-seqs", "0")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-model-length", "3", "model"], "there is no --max-model-length: the nearest is --max-model-len"),
        (["model", "--tensor-parallel-size=2"], "there is no --tensor-parallel-size: one GPU is used"),
        (["--no-enforce-eager"], "there is no --no-enforce-eager: nothing goes through torch.compile"),
        (["--api-server-count", "2"], "there is no --api-server-count: here it is called --gateways"),
        (["--qwxyz"], "there is no --qwxyz: `octavo serve --help` lists all settings"),
        (["model", "other"], "'other': only one MODEL is taken"),
        (["--port", "x"], "argument --port: invalid int value: 'x'; see octavo serve --help"),
        (["--config", "/no/such"], "--config /no/such: No such file or directory"),
        (["--help", "foo"], "--help foo: there is no such group of settings; there are http, model,"),
    ],
)
def test_errors_of_flags_are_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert str(caught.value).startswith(sentence)


def test_help_of_a_group_shows_its_settings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help=kv-cache")
    shown = capsys.readouterr().out
    assert "--block-size" in shown and "--kv-cache-dtype" in shown
    assert "--port" not in shown and "MODEL  " not in shown


def test_settings_of_python_are_those_of_flags() -> None:
    settings = {"model": Path("/models/a"), "max_model_len": 100, "device": "cpu", "seed": None}
    assert from_settings(settings) == read("/models/a", "--max-model-len", "100", "--device", "cpu")
    with pytest.raises(ConfigError, match="^there is no setting max_seqs: the nearest is max_num_seqs$"):
        from_settings({"max_seqs": 1})
    with pytest.raises(ConfigError, match="^device tpu: invalid enum value 'tpu'"):
        from_settings({"device": "tpu"})
