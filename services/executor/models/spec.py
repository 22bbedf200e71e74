"""What a decoder-only language model is, as plain frozen data. Imports nothing of torch or transformers.

Every field says something that at least one family of `families/` needs; a default means what most do.
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"]
NormPlace = Literal["attn", "attn_out", "mlp", "mlp_out"]


@dataclass(frozen=True)
class Norm:
    """Root-mean-square or layer norm; `plus_one` multiplies by 1 + weight."""

    kind: Literal["rms", "rms_plus_one", "layer", "layer_plus_one"] = "rms"
    eps: float = 1e-6
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs slowed by `factor`, fast ones left, the ones between interpolated (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071); `magnitude` multiplies cos and sin."""

    factor: float
    original_positions: int
    magnitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class TableScaling:
    """The frequency of each pair divided by its own number, as GGUF files store Llama 3's scaling."""

    divisors: tuple[float, ...]


@dataclass(frozen=True)
class Rope:
    """Rotary positions."""

    theta: float
    dim: int  # rotated dimensions of each head, at most head_dim
    interleaved: bool = False  # pairs (0, 1), (2, 3) … instead of (0, dim/2), (1, dim/2 + 1) …
    scaling: LinearScaling | Llama3Scaling | YarnScaling | TableScaling | None = None


@dataclass(frozen=True)
class Attention:
    """Causal attention of `heads` queries over `kv_heads` keys and values."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    scale: float  # of the scores, before softmax
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["", "head", "all", "head_after_rope"] = ""  # over each head, or over all of them at once
    qk_norm_like: Norm = Norm()
    window: int | None = None  # tokens seen, itself included
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    clip_qkv: float | None = None
    sinks: bool = False  # each head has a learned score that joins the softmax and has no value
    slopes: tuple[float, ...] = ()  # of ALiBi, one a head: scores get slope * (position of key - position of query)


@dataclass(frozen=True)
class Mlp:
    """act(gate(x)) * up(x) through down; without a gate act(up(x)) through down."""

    hidden: int
    act: Activation = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """An attention and an mlp, the norms that are there, and how the two are joined."""

    attention: Attention
    mlp: Mlp
    norms: tuple[NormPlace, ...] = ("attn", "mlp")
    # Both read the layer's input: through one norm ("attn"), or through one each when "mlp" is there too.
    parallel: bool = False


@dataclass(frozen=True)
class Decoder:
    """The whole model; `norm` is the kind of all its norms, and of the last one before the head."""

    vocab: int
    hidden: int
    layers: tuple[Layer, ...]
    norm: Norm
    tied: bool = False  # the head is the embedding, transposed
    head_bias: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    positions: int = 0  # rows of learned positions; 0 for none
    position_offset: int = 0  # the row of the first position
    embed_norm: bool = False  # a norm of what is embedded
