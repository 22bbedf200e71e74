"""Nemotron 3 and 4: layer norm with 1 + weight, squared ReLU without a gate."""

from octavo.services.executor.models.families.changes import ungated
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm


@family("nemotron", defaults={"partial_rotary_factor": 0.5})
def nemotron(config: Config) -> Decoder:
    return ungated(plain_decoder(config, Norm("layer_plus_one", config["norm_eps"], bias=True)))
