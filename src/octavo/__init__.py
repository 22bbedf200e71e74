"""Octavo, an LLM serving engine. Its parts are the folders services/, kernels/ and shared/ of the root."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.services.llm.async_llm import AsyncLLM as AsyncLLM
    from octavo.services.llm.llm import LLM as LLM
    from octavo.services.llm.outputs import CompletionOutput as CompletionOutput
    from octavo.services.llm.outputs import Logprob as Logprob
    from octavo.services.llm.outputs import RequestOutput as RequestOutput
    from octavo.services.llm.sampling_params import SamplingParams as SamplingParams
    from octavo.services.llm.sampling_params import StructuredOutputsParams as StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "AsyncLLM": "async_llm",
    "CompletionOutput": "outputs",
    "LLM": "llm",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "sampling_params",
}


def __getattr__(name: str) -> object:
    """What is for Python programs is imported when it is asked for: every process imports this file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"octavo.services.llm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
