"""The families of models: each says only how it differs from another. Importing the package knows all."""

from octavo.services.executor.fp8_weights import check_quantization
from octavo.services.executor.models.families import (
    cohere,
    ernie,
    exaone,
    gemma,
    glm,
    gpt,
    helium,
    hunyuan,
    llama,
    nemotron,
    olmo,
    phi,
    qwen,
    stablelm,
)
from octavo.services.executor.models.families.registry import FAMILIES, Config, Family
from octavo.services.executor.models.spec import Decoder
from octavo.shared.errors import ModelError

# Each of them enters its families in FAMILIES as it is imported.
MODULES = (
    cohere,
    ernie,
    exaone,
    gemma,
    glm,
    gpt,
    helium,
    hunyuan,
    llama,
    nemotron,
    olmo,
    phi,
    qwen,
    stablelm,
)


def build_spec(config: Config) -> tuple[Family, Decoder]:
    """The family of a parsed config.json, and what it says of this model.

    Raises ModelError for an unknown model_type, a missing key, and whatever the spec cannot say.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelError(f"model_type {model_type!r} is not supported; supported: {supported}")
    check_quantization(config)
    found = FAMILIES[model_type]
    try:
        return found, found.build(found.complete(config))
    except KeyError as missing:
        raise ModelError(f"config.json has no {missing}, which a {model_type} model needs") from missing
