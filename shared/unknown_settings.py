"""What to say of a setting that there is not: vLLM's that mean nothing here, or the nearest one that there is."""

from collections.abc import Callable, Iterable

_ALWAYS_AHEAD = "steps are always planned ahead; leave it out"
_LOGS = "requests and their prompts are never logged; --log-level sets what is; leave it out"
_NO_COMPILER = "nothing goes through torch.compile, and CUDA graphs are always recorded; leave it out"
_ONE_GPU = "one GPU is used; several are not supported yet"
_OWN_PROCESSES = "octavo starts its processes itself; leave it out"
_TOKENIZER = "the tokenizer that comes with the model is used; leave it out"

OF_VLLM = {
    "api_server_count": "here it is called --gateways",
    "async_scheduling": _ALWAYS_AHEAD,
    "attention_backend": "there is one for each device; leave it out",
    "compilation_config": _NO_COMPILER,
    "cpu_offload_gb": "weights stay on the device; leave it out",
    "data_parallel_size": _ONE_GPU,
    "disable_log_requests": _LOGS,
    "disable_log_stats": "figures are at /metrics and never logged; leave it out",
    "distributed_executor_backend": _OWN_PROCESSES,
    "enable_chunked_prefill": "prompts are always computed in chunks (see --max-step-ms); leave it out",
    "enable_expert_parallel": _ONE_GPU,
    "enable_log_requests": _LOGS,
    "enforce_eager": _NO_COMPILER,
    "kv_cache_memory_bytes": "the memory for KV is set by --gpu-memory-utilization or --num-kv-blocks",
    "max_num_queued_reqs": "here it is called --max-queued-requests",
    "num_gpu_blocks_override": "here it is called --num-kv-blocks",
    "optimization_level": _NO_COMPILER,
    "pipeline_parallel_size": _ONE_GPU,
    "runner": "models generate text, and nothing else; leave it out",
    "swap_space": "KV is never swapped: a request that must make room is computed again; leave it out",
    "task": "models generate text, and nothing else; leave it out",
    "tensor_parallel_size": _ONE_GPU,
    "tokenizer": _TOKENIZER,
    "tokenizer_mode": _TOKENIZER,
    "trust_remote_code": "code that comes with a model is never run; leave it out",
    "uvicorn_log_level": "here it is called --log-level",
}
"""Of those settings of vLLM that have no meaning here, or another name."""


def why_unknown(name: str, known: Iterable[str], show: Callable[[str], str]) -> str:
    """What helps whoever gave a setting that there is not.

    Args:
        name: as it was given, a flag or a key, with - or _.
        known: the names of all settings, with _.
        show: how a name is shown where this one was given.
    """
    name = name.lstrip("-").replace("-", "_")
    if (reason := OF_VLLM.get(name) or OF_VLLM.get(name.removeprefix("no_"))) is not None:
        return reason
    import difflib  # every process imports this file, and hardly any comes here

    near = difflib.get_close_matches(name, known, n=1)
    return f"the nearest is {show(near[0])}" if near else "`octavo serve --help` lists all settings"
