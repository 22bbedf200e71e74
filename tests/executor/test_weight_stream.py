"""Weights arrive whole, in the dtype asked for, and are let go when they are taken."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from octavo.services.executor.gpu.weight_stream import AHEAD_BYTES, PIECE_BYTES, Arriving, to_device
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.weights import check_weights, dummy_weights, expected_shapes
from octavo.shared.errors import ModelError

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "llama", "vocab_size": 6, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
ROWS_OF_A_PIECE = PIECE_BYTES // (1024 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(), (5,), (0, 7), (3, 7), (ROWS_OF_A_PIECE, 1024), (ROWS_OF_A_PIECE + 1, 1024), (2, ROWS_OF_A_PIECE, 1024)],
)
def test_a_tensor_arrives_whole(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape)

    [(name, arrived)] = to_device([("a", tensor)], dtype, CPU)

    assert name == "a"
    assert torch.equal(arrived, tensor.to(dtype))


def test_a_transposed_view_arrives_as_it_is_seen() -> None:
    tensor = torch.randn(33, 5).T

    [(_, arrived)] = to_device([("a", tensor)], torch.float32, CPU)

    assert torch.equal(arrived, tensor)


def test_tensors_of_a_mapped_file_arrive_in_order(tmp_path: Path) -> None:
    stored = {f"t{index}": torch.randn(100, index + 1).half() for index in range(40)}
    save_file(stored, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        views = [(name, file.get_tensor(name)) for name in stored]

    arrived = list(to_device(views, torch.float32, CPU))

    assert [name for name, _ in arrived] == list(stored)
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in arrived)


def test_no_more_than_a_bounded_number_of_bytes_is_read_ahead() -> None:
    began = 0

    def pieces() -> Iterator[tuple[str, Tensor]]:
        nonlocal began
        for index in range(100):
            began += 1
            yield str(index), torch.empty(AHEAD_BYTES // 8, dtype=torch.uint8)[:, None].expand(-1, 1)

    stream = to_device(pieces(), torch.uint8, CPU)
    next(stream)

    assert began <= 9
    stream.close()  # type: ignore[attr-defined]  # it is a generator


def test_what_goes_wrong_with_the_files_comes_out_of_the_stream() -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(3)
        raise ModelError("cannot read it")

    with pytest.raises(ModelError, match="cannot read it"):
        list(to_device(broken(), torch.float32, CPU))


def test_weights_are_taken_in_any_order_and_once() -> None:
    arriving = Arriving("abc", iter([(name, torch.full((2,), float(ord(name)))) for name in "abc"]))

    assert "c" in arriving and arriving["c"][0] == ord("c")
    assert "c" not in arriving and len(arriving) == 2
    assert arriving["a"][0] == ord("a") and arriving["b"][0] == ord("b")
    with pytest.raises(KeyError):
        arriving["a"]


def test_a_model_holds_no_weight_twice_while_it_is_built() -> None:
    """What was merged is let go before the next layer's weights come."""
    _, spec = build_spec(LLAMA)
    alive: list[tuple[str, weakref.ref[Tensor]]] = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in dummy_weights(spec, 0, torch.float32):
            merged = [old for old, ref in alive if ref() is not None and old.split(".")[-2] in ("q", "k", "v", "gate")]
            layers = {old.split(".")[1] for old in merged}
            assert layers <= {name.split(".")[1]}, f"{merged} are still there when {name} comes"
            alive.append((name, weakref.ref(tensor)))
            yield name, tensor
            del tensor

    arriving = Arriving(expected_shapes(spec), watched())
    streamed = DecoderModel(spec, arriving, torch.float32, 64)
    whole = DecoderModel(spec, dict(dummy_weights(spec, 0, torch.float32)), torch.float32, 64)

    assert len(arriving) == 0
    hidden = torch.randn(3, 16)
    assert torch.equal(streamed.logits(hidden), whole.logits(hidden))
    assert torch.equal(streamed.layers[2].mlp.up(hidden), whole.layers[2].mlp.up(hidden))


def test_a_missing_weight_is_named_by_the_check_and_not_by_the_model() -> None:
    _, spec = build_spec(LLAMA)
    some = [each for each in dummy_weights(spec, 0, torch.float32) if each[0] != "layers.1.attn.k.weight"]

    with pytest.raises(ModelError, match="layers.1.attn.k.weight missing"):
        DecoderModel(spec, Arriving(expected_shapes(spec), check_weights(spec, some)), torch.float32, 64)


def test_a_leftover_weight_is_named_at_the_end() -> None:
    _, spec = build_spec(LLAMA)
    weights = [*dummy_weights(spec, 0, torch.float32), ("visual.weight", torch.zeros(1))]
    arriving = Arriving(expected_shapes(spec), check_weights(spec, weights))
    DecoderModel(spec, arriving, torch.float32, 64)

    with pytest.raises(ModelError, match="visual.weight not known"):
        arriving.finish()
