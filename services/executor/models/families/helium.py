"""Helium: a llama with interleaved rotary pairs."""

from dataclasses import replace

from octavo.services.executor.models.families.changes import attend, interleaved
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family("helium", defaults={"rope_theta": 100_000.0})
def helium(config: Config) -> Decoder:
    return attend(interleaved(llama(config)), lambda attention: replace(attention, out_bias=False))
