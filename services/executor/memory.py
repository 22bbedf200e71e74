"""How memory is shared out, by arithmetic alone: weights, what a step needs, and KV blocks in all the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.shared.config import Config
from octavo.shared.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from octavo.services.executor.models.spec import Decoder

GIB = 2**30
RESERVE_BYTES = 3 * GIB
"""On a GPU: workspaces of libraries, code, recorded graphs, and what allocators lose by rounding."""
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""What a config.json may call the longest context that its model was made for."""
DEFAULT_MAX_LEN = 32_768
"""Of a model that does not say how long its context may be."""


@dataclass(frozen=True)
class GpuPlan:
    """What a GPU's memory goes to, in bytes."""

    total: int
    weights: int
    steps: int
    """What steps need at most beside weights and KV."""
    per_block: int
    num_blocks: int

    @property
    def kv(self) -> int:
        return self.per_block * self.num_blocks


def check_weights_fit(num_bytes: int, dtype: str, free: int, total: int) -> None:
    """Raises ConfigError if that many bytes of weights are more than a GPU has free."""
    if num_bytes >= free:
        raise ConfigError(
            f"the weights take {num_bytes / GIB:.1f} GiB as {dtype}; of the GPU's {total / GIB:.1f} GiB "
            f"{free / GIB:.1f} GiB are free: free them from other processes, take a --dtype of fewer bits or "
            "a smaller model"
        )


def plan_gpu(config: Config, total: int, free: int, weights: int, steps: int, per_block: int) -> GpuPlan:
    """How many KV blocks there will be.

    Args:
        total, free: of the GPU, in bytes; free with the weights loaded.
        weights, steps: bytes; see `step_bytes`.
        per_block: bytes of one KV block in all layers.

    Raises ConfigError if they do not fit.
    """
    unused = (1 - config.gpu_memory_utilization) * total
    budget = free - unused - steps
    num_blocks = config.num_kv_blocks or int(budget // per_block) - 1  # the null block
    if num_blocks < 1 or num_blocks * per_block > free:
        raise ConfigError(
            f"no room for {max(num_blocks, 1)} KV blocks of {per_block / 2**20:.1f} MiB: of the GPU's "
            f"{total / GIB:.1f} GiB weights take {weights / GIB:.1f}, steps up to {steps / GIB:.1f}, "
            f"--gpu-memory-utilization leaves {unused / GIB:.1f} unused, and {free / GIB:.1f} are free beside the "
            "weights: lower --max-num-batched-tokens, --max-num-seqs or --num-kv-blocks, or raise "
            "--gpu-memory-utilization"
        )
    return GpuPlan(total, weights, steps, per_block, num_blocks)


def step_bytes(spec: "Decoder", itemsize: int, num_tokens: int, num_slots: int, graph_rows: int) -> int:
    """What steps need at most beside weights and KV, on a GPU.

    Args:
        num_tokens: of the largest step.
        num_slots: the most rows that are sampled, and the rows of the largest graph.
        graph_rows: rows of all graphs together: the logits of each keep their place.
    """
    # The residual stream and its norm, twice as the allocator may not find the room of the last at once; queries,
    # keys, values and the attention's output; gate, up and their product.
    per_token = 4 * spec.hidden + max(
        (4 * layer.attention.heads + 4 * layer.attention.kv_heads) * layer.attention.head_dim + 3 * layer.mlp.hidden
        for layer in spec.layers
    )
    is_plain = spec.logit_scale == 1.0 and spec.logit_softcap is None
    logits = spec.vocab * (num_slots * (1 if is_plain else 3) + graph_rows)
    return ((num_tokens + num_slots) * per_token + logits) * itemsize + RESERVE_BYTES


def context_limit(model_config: Mapping[str, Any], default: int) -> int:
    """Prompt and completion together, as the model was made for."""
    return int(next((model_config[name] for name in CONTEXT_NAMES if model_config.get(name)), default))


def check_max_model_len(config: Config, limit: int) -> int:
    """What is asked for, else the model's limit. Raises ConfigError if that is exceeded."""
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(f"--max-model-len {config.max_model_len}: this model takes at most {limit}")
    return config.max_model_len or limit


def longest_request(config: Config, limit: int, num_blocks: int, block_size: int, remedy: str) -> int:
    """Prompt and completion together: what is asked for, or what the model and the KV blocks allow.

    remedy: what gives more KV blocks. Raises ConfigError or ModelError.
    """
    wanted, room = check_max_model_len(config, limit), num_blocks * block_size
    if config.max_model_len is not None and wanted > room:
        raise ConfigError(
            f"--max-model-len {wanted} needs {-(-wanted // block_size)} KV blocks of {block_size} tokens; "
            f"there are {num_blocks}: lower it, or {remedy}"
        )
    longest = min(wanted, room)
    if longest < 2:
        raise ModelError(f"a context of {longest} tokens leaves no room for a completion")
    return longest
