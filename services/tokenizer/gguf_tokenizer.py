"""The tokenizer that a GGUF file's metadata describes.

Byte-level BPE ("gpt2") and SentencePiece ("llama"); the format is llama.cpp's, whose
src/llama-vocab.cpp says what each `tokenizer.ggml.pre` means. The regular expressions are those of
the models' own tokenizer.json.
"""

from collections.abc import Callable, Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from octavo.shared.errors import ModelError

# llama.h, llama_token_type: <unk>, markup, text that is never cut, left free, and <0xNN>.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_NEVER_MERGED = frozenset({_UNKNOWN, _CONTROL, _UNUSED, _BYTE})

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDINGS
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDINGS
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _ENDINGS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDINGS
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDINGS
)

_GPT2_NAMES = ("default", "gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion")
_SMOLLM_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_SPLITS = {
    **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2", "kanana2"), _GPT4O),
}
_COMPOSED_NAMES = frozenset({"qwen2", "qwen35", "deepseek-r1-qwen"})  # text is put into NFC first

# Ends of a turn that older files mark as control tokens but do not name as eot_token_id.
_TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<end_of_turn>"})


def build_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a GGUF file, from `tokenizer.ggml.*` in its metadata.

    Raises ModelError when a field is missing, or its model or pre-tokenizer is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    build = _BUILDERS.get(str(kind))
    if build is None:
        raise ModelError(f"tokenizer.ggml.model is {kind!r}; supported are {', '.join(sorted(_BUILDERS))}")
    return build(metadata)


def named_token(metadata: Mapping[str, object], name: str) -> str:
    """The text of the token that the file calls `name` ("bos", "eos"); "" when it names none."""
    token_id = _token_id(metadata, name)
    return "" if token_id is None else str(_values(metadata, "tokenizer.ggml.tokens")[token_id])


def eos_ids(metadata: Mapping[str, object]) -> frozenset[int]:
    """Ids that end a completion: of a text, a turn, or a message."""
    named = {_token_id(metadata, name) for name in ("eos", "eot", "eom")}
    types = _types(metadata)
    ends = {
        token_id
        for token_id, token in enumerate(_values(metadata, "tokenizer.ggml.tokens"))
        if token in _TURN_ENDS and types[token_id] == _CONTROL
    }
    return frozenset(ends | {token_id for token_id in named if token_id is not None})


def _byte_level(metadata: Mapping[str, object]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name in _GPT2_NAMES:
        pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name in _SMOLLM_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[str(name)]), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    else:
        known = ", ".join(sorted([*_GPT2_NAMES, *_SMOLLM_NAMES, *_SPLITS]))
        raise ModelError(f"tokenizer.ggml.pre is {name!r}; supported are {known}")

    tokens = _tokens(metadata)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = (str(merge).partition(" ") for merge in _values(metadata, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    # Llama 3 has words as single tokens that its merges never reach.
    tokenizer = Tokenizer(_bpe(ids, merges, ignore_merges=name in _LLAMA3_NAMES))
    if name in _COMPOSED_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    _finish(tokenizer, tokens, metadata, adds_bos=name in _LLAMA3_NAMES)
    return tokenizer


def _sentence_piece(metadata: Mapping[str, object]) -> Tokenizer:
    tokens = _tokens(metadata)
    is_gemma = str(metadata.get("general.architecture")).startswith("gemma")
    if is_gemma:  # Gemma's runs of spaces are stored as spaces, and its scores are not in merge order
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    scores = (
        [-float(token_id) for token_id in range(len(tokens))]
        if is_gemma
        else [float(str(score)) for score in _values(metadata, "tokenizer.ggml.scores", len(tokens))]
    )
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    unknown = named_token(metadata, "unknown") or ("<unk>" if "<unk>" in ids else None)
    merges = _merges_from_scores(ids, tokens, scores, _types(metadata))
    tokenizer = Tokenizer(_bpe(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))

    to_marks = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), to_marks])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = to_marks
        tokenizer.decoder = decoders.Sequence(steps)
    _finish(tokenizer, tokens, metadata, adds_bos=True)
    return tokenizer


_BUILDERS: dict[str, Callable[[Mapping[str, object]], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentence_piece,
}


def _bpe(
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> BPE:
    try:
        return BPE(
            ids,
            merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # tokenizers raises a bare Exception for a merge outside the vocabulary
        raise ModelError(f"tokenizer.ggml.tokens and merges make no vocabulary: {error}") from error


def _merges_from_scores(
    ids: Mapping[str, int], tokens: Sequence[str], scores: Sequence[float], types: Sequence[object]
) -> list[tuple[str, str]]:
    """BPE merges that give SentencePiece's pieces: all ways to make a token of two, best score first.

    The order of equal scores is that of transformers, tokenization_utils_base.generate_merges.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if kind in _NEVER_MERGED:
            continue
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found.extend((score, len(left), len(right), left, right) for left, right in pairs)
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _finish(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Mapping[str, object], *, adds_bos: bool) -> None:
    """Add to `tokenizer` the tokens that are never cut, and the BOS and EOS that a text gets."""
    kinds = list(zip(tokens, _types(metadata), strict=True))
    special = [token for token, kind in kinds if kind in (_UNKNOWN, _CONTROL)]
    user_defined = [token for token, kind in kinds if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])

    template, around = ["$A"], []
    if (bos_id := _token_id(metadata, "bos")) is not None and metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        template.insert(0, named_token(metadata, "bos"))
        around.append((template[0], bos_id))
    if (eos_id := _token_id(metadata, "eos")) is not None and metadata.get("tokenizer.ggml.add_eos_token"):
        template.append(named_token(metadata, "eos"))
        around.append((template[-1], eos_id))
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)


def _values(metadata: Mapping[str, object], key: str, count: int | None = None) -> list[object]:
    """The array `key`, of `count` values if that is given."""
    value = metadata.get(key)
    if not isinstance(value, list):
        raise ModelError(f"the GGUF file has no array {key}; its tokenizer cannot be built without")
    if count is not None and len(value) != count:
        raise ModelError(f"{key} has {len(value)} values; the vocabulary has {count} tokens")
    return value


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    return [str(token) for token in _values(metadata, "tokenizer.ggml.tokens")]


def _types(metadata: Mapping[str, object]) -> list[object]:
    """The type of each token, one of llama_token_type; all normal where the file does not say."""
    count = len(_values(metadata, "tokenizer.ggml.tokens"))
    if "tokenizer.ggml.token_type" not in metadata:
        return [1] * count
    return _values(metadata, "tokenizer.ggml.token_type", count)


def _token_id(metadata: Mapping[str, object], name: str) -> int | None:
    """The id that the file gives for `name`; None where it gives none or one beyond the vocabulary."""
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    count = len(_values(metadata, "tokenizer.ggml.tokens"))
    return token_id if isinstance(token_id, int) and 0 <= token_id < count else None
