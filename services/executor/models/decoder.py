"""The one decoder: builds what a spec asks for from named weights, and runs it over a batch of tokens.

It knows no pages and no requests: attention is a function that the caller brings.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.activation import plain
from octavo.kernels.fp8 import FP8, can_multiply, dequantize
from octavo.kernels.rope import rope, tables
from octavo.services.executor.models.fp8_linear import Fp8Linear
from octavo.services.executor.models.linear import Linear
from octavo.services.executor.models.norm import NormLayer
from octavo.services.executor.models.rope import frequencies
from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm, NormPlace, Rope


class Attend(Protocol):
    """Writes a layer's new keys and values into the cache and attends over it."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: "AttentionLayer") -> Tensor:
        """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] -> [tokens, heads, head_dim]"""
        ...

    def of_qkv(self, layer: int, qkv: Tensor, attention: "AttentionLayer", angles: "Angles") -> Tensor | None:
        """The same from the product [tokens, (heads + 2 * kv_heads) * head_dim], norms and RoPE included.

        None where it cannot: then they are done one by one.
        """
        ...


class Weights:
    """Named tensors, in the dtype and on the device of the model.

    A weight beside which there is a `weight_scale` is FP8, see `octavo.kernels.fp8`.
    """

    def __init__(self, named: Mapping[str, Tensor], dtype: torch.dtype, pack: bool) -> None:
        self._named = named
        self.dtype = dtype
        self._pack = pack
        self.embed = self.get("embed.weight")

    def get(self, name: str) -> Tensor:
        return self._named[name].to(self.dtype)

    def number(self, name: str) -> float:
        """The only element of a tensor; 1 where there is none of this name."""
        return float(self._named[name]) if name in self._named else 1.0

    def merged(self, *names: str, has_bias: bool) -> Linear | Fp8Linear:
        """One linear layer of the rows of several; in FP8 if all of them are."""
        bias = torch.cat([self.get(f"{name}.bias") for name in names]) if has_bias else None
        pairs = [(self._named[f"{name}.weight"], self._named.get(f"{name}.weight_scale")) for name in names]
        if all(scale is not None and can_multiply(values) for values, scale in pairs):
            rows = torch.cat([values.view(torch.uint8) for values, _ in pairs])
            return Fp8Linear(rows.view(FP8), torch.cat([scale for _, scale in pairs if scale is not None]), bias)
        return self.linear(torch.cat([self._dense(*pair) for pair in pairs]), bias)

    def _dense(self, values: Tensor, scale: Tensor | None) -> Tensor:
        return values.to(self.dtype) if scale is None else dequantize(values, scale, self.dtype)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return Linear(weight.contiguous(), bias, packed=self._pack)

    def norm(self, name: str, spec: Norm) -> NormLayer:
        weight = self._named[f"{name}.weight"] if spec.weight else None
        if weight is not None:
            weight = (weight.float() + 1 if spec.kind.endswith("plus_one") else weight).to(self.dtype)
        return NormLayer(spec, weight, self.get(f"{name}.bias") if spec.bias else None)


class AttentionLayer:
    def __init__(self, spec: Attention, weights: Weights, prefix: str) -> None:
        self.spec = spec
        self.qkv = weights.merged(f"{prefix}.q", f"{prefix}.k", f"{prefix}.v", has_bias=spec.qkv_bias)
        self.out = weights.merged(f"{prefix}.o", has_bias=spec.out_bias)
        self.q_norm = weights.norm(f"{prefix}.q_norm", spec.qk_norm_like) if spec.qk_norm else None
        self.k_norm = weights.norm(f"{prefix}.k_norm", spec.qk_norm_like) if spec.qk_norm else None
        self.splits = [spec.heads, spec.kv_heads, spec.kv_heads]
        self.sinks = weights.get(f"{prefix}.sinks").float() if spec.sinks else None  # [heads]
        self.slopes = torch.tensor(spec.slopes, device=weights.embed.device) if spec.slopes else None  # [heads]
        # A KV cache in FP8 holds keys and values divided by these.
        self.k_scale, self.v_scale = weights.number(f"{prefix}.k_scale"), weights.number(f"{prefix}.v_scale")

    def __call__(self, x: Tensor, norm: NormLayer | None, layer: int, angles: "Angles", attend: Attend) -> Tensor:
        """What heads see, [tokens, heads * head_dim]; `out` is to come. norm: of x, if there is one."""
        spec = self.spec
        qkv = self.qkv(x, norm=norm)
        if (attended := attend.of_qkv(layer, qkv, self, angles)) is not None:
            return attended.flatten(1)
        if spec.clip_qkv:
            qkv = qkv.clamp_(-spec.clip_qkv, spec.clip_qkv)
        heads = qkv.view(len(x), -1, spec.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        if self.q_norm is None and spec.rope is not None:
            both, v = heads.split([spec.heads + spec.kv_heads, spec.kv_heads], 1)  # type: ignore[no-untyped-call]  # torch's own
            q, k = rope(both, *angles.of(spec.rope), spec.rope.interleaved).split(self.splits[:2], 1)  # type: ignore[no-untyped-call]  # torch's own
        else:
            q, k, v = heads.split(self.splits, 1)  # type: ignore[no-untyped-call]  # torch's own
            q, k = self._normed_and_turned(q, k, angles)
        return attend(layer, q, k, v, self).flatten(1)

    def _normed_and_turned(self, q: Tensor, k: Tensor, angles: "Angles") -> tuple[Tensor, Tensor]:
        spec = self.spec
        if self.q_norm is not None and self.k_norm is not None:
            if spec.qk_norm == "all":
                q, k = self.q_norm(q.flatten(1)).view(q.shape), self.k_norm(k.flatten(1)).view(k.shape)
            elif spec.qk_norm == "head":
                q, k = self.q_norm(q), self.k_norm(k)
        if spec.rope is not None:
            cos, sin = angles.of(spec.rope)
            q, k = rope(q, cos, sin, spec.rope.interleaved), rope(k, cos, sin, spec.rope.interleaved)
        if self.q_norm is not None and self.k_norm is not None and spec.qk_norm == "head_after_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k


class MlpLayer:
    def __init__(self, spec: Mlp, weights: Weights, prefix: str) -> None:
        self.spec = spec
        names = [f"{prefix}.gate", f"{prefix}.up"] if spec.gated else [f"{prefix}.up"]
        self.up = weights.merged(*names, has_bias=spec.bias)
        self.down = weights.merged(f"{prefix}.down", has_bias=spec.bias)

    def __call__(self, x: Tensor, norm: NormLayer | None, residual: Tensor | None) -> Tensor:
        """norm: of x, if there is one. residual: added to the output, if there is one."""
        act = self.spec.act
        if not self.spec.gated:
            return self.down(plain(self.up(x, norm=norm), act), residual)
        if (gated := self.up.gated(x, norm, act)) is not None:
            return self.down(gated, residual)
        return self.down(self.up(x, norm=norm), residual, gate=act)


class DecoderLayer:
    def __init__(self, spec: Layer, decoder: Decoder, weights: Weights, index: int) -> None:
        self.spec, self.index, self.scale = spec, index, decoder.residual_scale
        prefix = f"layers.{index}"
        self.attention = AttentionLayer(spec.attention, weights, f"{prefix}.attn")
        self.mlp = MlpLayer(spec.mlp, weights, f"{prefix}.mlp")
        self.norms = {name: weights.norm(f"{prefix}.{name}_norm", decoder.norm) for name in spec.norms}
        linears = (self.attention.qkv, self.attention.out, self.mlp.up, self.mlp.down)
        self.kind = (spec, *map(type, linears))  # layers of one kind call the same kernels

    def __call__(self, x: Tensor, angles: "Angles", attend: Attend, needed: Tensor | None = None) -> Tensor:
        """needed: the rows to return, as the last layer's other ones serve nothing but attention; None: all."""
        norms = self.norms
        if not self.spec.parallel:
            attended, x = _only(needed, self.attention(x, norms.get("attn"), self.index, angles, attend), x)
            x = self._add("attn_out", x, lambda residual: self.attention.out(attended, residual))
            return self._add("mlp_out", x, lambda residual: self.mlp(x, norms.get("mlp"), residual))
        # Both read x before either is added to it.
        h = self._norm("attn", x)
        attended, x, h = _only(needed, self.attention(h, None, self.index, angles, attend), x, h)
        beside = self._norm("mlp", x) if "mlp" in norms else h
        x = self._add("attn_out", x, lambda residual: self.attention.out(attended, residual))
        return self._add("mlp_out", x, lambda residual: self.mlp(beside, None, residual))

    def _norm(self, name: NormPlace, x: Tensor) -> Tensor:
        norm = self.norms.get(name)
        return x if norm is None else norm(x)

    def _add(self, norm: NormPlace, x: Tensor, part: Callable[[Tensor | None], Tensor]) -> Tensor:
        """x and the output of a part, normed and scaled; the part's last product adds x itself if it can."""
        if self.scale == 1.0 and norm not in self.norms:
            return part(x)
        return torch.add(x, self._norm(norm, part(None)), alpha=self.scale)


def _only(rows: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if rows is None else tuple(each.index_select(0, rows) for each in tensors)


class Angles:
    """cos and sin of the positions of one batch, for each kind of rope that the layers have."""

    def __init__(self, by_rope: dict[Rope, tuple[Tensor, Tensor]], positions: Tensor) -> None:
        self._by_rope, self._positions = by_rope, positions
        self._chosen: dict[Rope, tuple[Tensor, Tensor]] = {}

    def of(self, spec: Rope) -> tuple[Tensor, Tensor]:
        """[tokens, 1, dim] each."""
        chosen = self._chosen.get(spec)
        if chosen is None:
            cos, sin = self._by_rope[spec]
            chosen = cos.index_select(0, self._positions), sin.index_select(0, self._positions)
            self._chosen[spec] = chosen
        return chosen

    def table(self, spec: Rope) -> tuple[Tensor, Tensor]:
        """Of all positions, [positions, 1, dim] each."""
        return self._by_rope[spec]

    def move_to(self, positions: Tensor) -> None:
        """Take other positions, no more than at first: what `of` gave has theirs in front, in the same memory."""
        for spec, whole in self._by_rope.items():
            for table, chosen in zip(whole, self.of(spec), strict=True):
                torch.index_select(table, 0, positions, out=chosen[: len(positions)])


class DecoderModel:
    """A spec with its weights.

    Args:
        named: the weights by our names, of any float dtype; each is asked for once.
        max_positions: the longest request, in tokens.
        pack: keep a second copy of the weights where more than one row needs one (bfloat16 on a CPU without tiles).
    """

    def __init__(
        self,
        spec: Decoder,
        named: Mapping[str, Tensor],
        dtype: torch.dtype,
        max_positions: int,
        pack: bool = False,
    ) -> None:
        weights = Weights(named, dtype, pack)
        self.spec, self.dtype = spec, dtype
        self.embed = weights.embed
        self.positions = weights.get("positions.weight") if spec.positions else None
        self.embed_norm = weights.norm("embed_norm", spec.norm) if spec.embed_norm else None
        self.layers = [DecoderLayer(layer, spec, weights, i) for i, layer in enumerate(spec.layers)]
        self._kinds = list({layer.kind: layer for layer in reversed(self.layers)}.values())
        self.norm = weights.norm("norm", spec.norm)
        head = self.embed if spec.tied else weights.get("head.weight")
        self.head = weights.linear(head, weights.get("head.bias") if spec.head_bias else None)
        ropes = {layer.attention.rope for layer in spec.layers if layer.attention.rope is not None}
        self._ropes = {each: _rope_tables(each, max_positions, dtype, self.embed.device) for each in ropes}

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend, needed: Tensor | None = None) -> Tensor:
        """The last layer's output before the final norm, [tokens, hidden].

        token_ids, positions: [tokens] int64.
        needed: the rows of it that are, [needed, hidden]; None: all.
        """
        return self.hidden_of(F.embedding(token_ids, self.embed), positions, attend, needed)

    def hidden_of(
        self, rows: Tensor, positions: Tensor, attend: Attend, needed: Tensor | None = None, is_rehearsal: bool = False
    ) -> Tensor:
        """As `hidden`, from the tokens' rows of the embedding table, [tokens, hidden].

        is_rehearsal: go through one layer of each kind instead of all, which calls all kernels that all would call.
        """
        x, angles = self._placed(rows, positions), self.angles(positions)
        for layer in self._kinds if is_rehearsal else self.layers[:-1]:
            x = layer(x, angles, attend)
        return self.layers[-1](x, angles, attend, needed)

    def embedded(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input, [tokens, hidden]."""
        return self._placed(F.embedding(token_ids, self.embed), positions)

    def _placed(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.spec.embed_scale != 1.0:
            x = x * self.spec.embed_scale
        if self.positions is not None:
            x = x + F.embedding(positions + self.spec.position_offset, self.positions)
        return x if self.embed_norm is None else self.embed_norm(x)

    def angles(self, positions: Tensor) -> Angles:
        return Angles(self._ropes, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab], in the model's dtype."""
        logits = self.head(hidden, norm=self.norm)
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def _rope_tables(spec: Rope, positions: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    inverse, scale = frequencies(spec)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse  # [positions, dim/2]
    cos, sin = tables(angles, scale, spec.interleaved)
    return cos[:, None].to(device, dtype), sin[:, None].to(device, dtype)
