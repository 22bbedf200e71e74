"""A model before its weights are read: its files, what it is, and the dtype to compute in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.services.executor.memory import DEFAULT_MAX_LEN, check_max_model_len, context_limit
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.models.families.registry import Family
from octavo.services.executor.models.spec import Decoder
from octavo.services.executor.weights import check_weights, dummy_weights, read_weights
from octavo.shared.config import Config
from octavo.shared.errors import ModelError
from octavo.shared.model_files import ModelFiles, read_config

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """What every device begins with."""

    files: ModelFiles
    model_config: Mapping[str, Any]
    family: Family
    spec: Decoder
    dtype: torch.dtype
    limit: int
    """Prompt and completion together, in tokens, as the model was made for."""

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def quantization(self, config: Config) -> str | None:
        """What linear weights become while they are loaded: as asked for, or as the checkpoint would have them."""
        is_made_up = config.load_format == "dummy" and bool(self.model_config.get("quantization_config"))
        return "fp8" if is_made_up else config.quantization

    def weights(self, config: Config, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The weights that the spec expects: made up on `device`, or read, and then on the CPU.

        They are as the checkpoint has them; `settle` is to follow. Raises ModelError as `check_weights` does.
        """
        if config.load_format == "dummy":
            return dummy_weights(self.spec, config.seed, self.dtype, device)
        return check_weights(self.spec, read_weights(self.files, self.family, self.model_config, self.dtype))


def open_model(config: Config, files: ModelFiles, device: str) -> Source:
    """The model of these files, for "cuda" or "cpu". Raises ModelError or ConfigError."""
    model_config: Mapping[str, Any] = read_config(files)
    family, spec = build_spec(model_config)
    learned = spec.positions - spec.position_offset if spec.positions else DEFAULT_MAX_LEN
    limit = context_limit(model_config, learned)
    check_max_model_len(config, limit)  # before minutes are spent on weights
    return Source(files, model_config, family, spec, choose_dtype(config, model_config, device), limit)


def choose_dtype(config: Config, model_config: Mapping[str, Any], device: str) -> torch.dtype:
    """The dtype asked for; else the model's, where 16 bits become bfloat16 if a CPU computes in it.

    Raises ModelError if the model's is none that is computed in.
    """
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    own = str(model_config.get("dtype") or model_config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if own not in DTYPES:
        raise ModelError(f"the model's dtype is {own}; computed is in {', '.join(DTYPES)}: choose one by --dtype")
    if device == "cuda":
        return DTYPES[own]
    return torch.bfloat16 if own != "float32" and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
