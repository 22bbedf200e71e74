"""Every setting of Octavo: one field with its default, bounds and meaning; flags and --help follow from it."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.shared.api_keys import check_keys, gather_keys
from octavo.shared.arguments import SettingsParser, list_settings, to_flag
from octavo.shared.config_file import read_config_file
from octavo.shared.errors import ConfigError
from octavo.shared.unknown_settings import why_unknown

Positive = Annotated[int, Meta(ge=1)]
Duration = Annotated[float, Meta(gt=0.0)]
API_KEY_VARIABLE = "OCTAVO_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECRET = ("api_key", "api_key_file")  # never on the command line of a child: `ps` shows it

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s?#@]+")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Read once by each process, then passed down. Names and meanings are vLLM's where it has them."""

    model: Annotated[str | None, Meta(description="folder, GGUF file or Hub id; none: SmolLM2-135M-Instruct")] = None

    host: Annotated[str, Meta(description="address to listen on", extra={"group": "HTTP"})] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    gateways: Annotated[int, Meta(ge=1, le=64, description="HTTP processes, all on one port")] = 1
    tokenizers: Annotated[int, Meta(ge=1, le=64, description="tokenizer processes")] = 1
    api_key: Annotated[
        list[str] | None,
        Meta(description=f"key that clients must send, once for each key (or {API_KEY_VARIABLE}, separated by commas)"),
    ] = None
    api_key_file: Annotated[
        str | None, Meta(description="file with more such keys, one a line; # begins a comment")
    ] = None
    insecure: Annotated[bool, Meta(description="listen beyond loopback without a key")] = False
    ssl_certfile: Annotated[str | None, Meta(description="certificate chain in PEM form; given: HTTPS")] = None
    ssl_keyfile: Annotated[str | None, Meta(description="its key; none: in the file of the certificate")] = None
    ssl_ca_certs: Annotated[str | None, Meta(description="authorities of the certificates that clients show")] = None
    ssl_cert_reqs: Annotated[
        Annotated[int, Meta(ge=0, le=2)] | None,
        Meta(description="clients 0: need no certificate, 1: may show one, 2: must; none: 2 with --ssl-ca-certs"),
    ] = None
    allowed_origins: Annotated[
        list[str] | None, Meta(description="origins whose web pages may call (CORS), or *; none: no page of others")
    ] = None
    access_log: Annotated[bool, Meta(description="log one line for each answer, without texts and keys")] = False
    max_body_mib: Annotated[int, Meta(ge=1, le=1024, description="largest body of a request, MiB")] = 4
    served_model_name: Annotated[
        list[str] | None, Meta(description="names under which the model is served; the first is reported")
    ] = None
    max_queued_requests: Annotated[Positive, Meta(description="waiting requests, above which 429 is answered")] = 4096

    device: Annotated[
        Literal["auto", "cuda", "cpu", "sim"],
        Meta(description="where the model runs; sim: no model, a known token stream", extra={"group": "model"}),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Meta(description="of weights and KV; auto: the model's, or float32 on a CPU without bfloat16"),
    ] = "auto"
    quantization: Annotated[
        Literal["fp8"] | None,
        Meta(description="of linear weights while they are loaded, on cuda; none: as the model's files say"),
    ] = None
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="dummy: random weights from config.json alone")
    ] = "auto"
    generation_config: Annotated[
        Literal["auto", "vllm"],
        Meta(description="defaults of sampling; auto: the model's generation_config.json; vllm: OpenAI's"),
    ] = "auto"
    tool_call_parser: Annotated[
        str, Meta(description="how the model writes calls of tools; auto: as its chat template does; none: it does not")
    ] = "auto"
    reasoning_parser: Annotated[
        str, Meta(description="how the model writes its reasoning; auto: as its chat template does; none: it does not")
    ] = "auto"
    max_grammar_compile_s: Annotated[
        float, Meta(gt=0.0, le=600.0, description="CPU time to compile one request's grammar")
    ] = 10.0
    max_grammar_compile_mib: Annotated[
        int, Meta(ge=16, le=1024 * 1024, description="memory to compile one request's grammar, MiB")
    ] = 2048
    trust_request_chat_template: Annotated[bool, Meta(description="let requests bring their own chat template")] = False
    max_model_len: Annotated[
        Positive | None, Meta(description="prompt and completion together, in tokens; none: the model's")
    ] = None
    seed: Annotated[int, Meta(ge=0, description="of dummy weights and of requests that bring none")] = 0

    max_num_seqs: Annotated[
        Positive | None,
        Meta(description="requests that run at once; none: 64 on cpu, 1024 else", extra={"group": "scheduler"}),
    ] = None
    max_num_batched_tokens: Annotated[
        Positive | None, Meta(description="tokens computed in one step; none: 512 on cpu, 8192 else")
    ] = None
    max_step_ms: Annotated[
        Duration | None,
        Meta(description="longest step while requests decode: prompts are cut to fit; none: 40 on cuda"),
    ] = None
    enable_prefix_caching: Annotated[bool, Meta(description="share the KV of equal prompt beginnings")] = True

    block_size: Annotated[
        int | None,
        Meta(description="tokens in a KV block, 1 to 256; none: 64 on cuda, 16 else", extra={"group": "KV cache"}),
    ] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8"], Meta(description="of keys and values; auto: that of --dtype; fp8 (e4m3): on cuda only")
    ] = "auto"
    num_kv_blocks: Annotated[Positive | None, Meta(description="KV blocks; none: as many as memory allows")] = None
    gpu_memory_utilization: Annotated[
        float,
        Meta(gt=0.0, le=1.0, description="share of the GPU's memory that may be used; steps are planned for within it"),
    ] = 1.0
    cpu_kv_cache_gib: Annotated[
        float, Meta(gt=0.0, description="memory for KV blocks on cpu, GiB (at most half of what is free)")
    ] = 4.0

    sim_step_ms: Annotated[
        float,
        Meta(ge=0.0, le=60_000.0, description="how long a simulated step takes", extra={"group": "other"}),
    ] = 0.0
    otlp_endpoint: Annotated[
        str | None, Meta(description="URL of an OTLP collector for traces, like http://localhost:4318; none: no traces")
    ] = None
    runtime_dir: Annotated[
        str | None, Meta(description="folder of the sockets between processes; none: a fresh private one")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe event that is logged")
    ] = "warning"

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not (self.api_key or self.insecure):
            raise ConfigError(
                f"--host {self.host} can be reached from outside: set --api-key, or --insecure if that is meant"
            )
        check_keys(self.api_keys)
        for flag, value in (("keyfile", self.ssl_keyfile), ("ca-certs", self.ssl_ca_certs)):
            if value is not None and self.ssl_certfile is None:
                raise ConfigError(f"--ssl-{flag} is of no use without --ssl-certfile")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ConfigError(f"--ssl-cert-reqs {self.ssl_cert_reqs} needs --ssl-ca-certs: whom to believe")
        for origin in self.allowed_origins or ():
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"--allowed-origins {origin} is not an origin like https://example.com:8443, nor *")
        if self.block_size is not None and self.block_size not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            raise ConfigError(f"--block-size {self.block_size} is not a power of two from 1 to 256")

    @property
    def model_names(self) -> list[str]:
        """What clients may call the model; the first is what we call it."""
        if self.served_model_name:
            return self.served_model_name
        return [self.model or "SmolLM2-135M-Instruct"]

    @property
    def api_keys(self) -> list[str]:
        return self.api_key or []


def parse(argv: Sequence[str], prog: str, description: str) -> Config:
    """The config of a command line: defaults, then what `--config FILE` says, then flags.

    Raises:
        ConfigError: a flag or a key of the file is not known, a value is out of its bounds, or two settings contradict
            each other.
        SystemExit: after --help.
    """
    given = settings_parser(prog, description).read(argv)
    path = given.pop("config_file", None)
    of_file = {} if path is None else read_config_file(path, Config.__struct_fields__, list_settings(Config))
    places = {name: f"{path}: {name.replace('_', '-')}" for name in of_file if name not in given}
    given = of_file | given
    given["api_key"] = gather_keys(
        given.get("api_key"), given.pop("api_key_file", None), os.environ.get(API_KEY_VARIABLE)
    )
    return _checked({name: value for name, value in given.items() if value is not None}, places)


def from_settings(settings: Mapping[str, Any]) -> Config:
    """The config of settings by name, as Python code gives them; None is the default. Raises ConfigError."""
    for name in settings:
        if name not in Config.__struct_fields__:
            raise ConfigError(f"there is no setting {name}: {why_unknown(name, Config.__struct_fields__, str)}")
    model = settings.get("model")
    given = {**settings, "model": None if model is None else str(model)}  # it may be a Path
    return _checked(given, {name: name for name in settings})


def settings_parser(prog: str, description: str) -> SettingsParser:
    """The flags of all settings."""
    return SettingsParser(Config, prog, description)


def key_to_send() -> str | None:
    """The key that a client on this machine sends: the first one of the environment's."""
    return next(iter(gather_keys(None, None, os.environ.get(API_KEY_VARIABLE)) or ()), None)


def to_flags(config: Config) -> list[str]:
    """Flags that `parse` reads back into an equal config; defaults and API keys are left out."""
    flags: list[str] = []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if value == field.default or field.name in SECRET:
            continue
        if field.name == "model":
            flags.append(value)
        elif isinstance(value, bool):
            flags.append(to_flag(field.name) if value else "--no-" + to_flag(field.name)[2:])
        elif isinstance(value, list):
            flags += [to_flag(field.name), *value]
        else:
            flags += [to_flag(field.name), str(value)]
    # The model comes last behind "--", for a list flag before it would swallow it.
    if config.model is not None:
        flags.remove(config.model)
        flags += ["--", config.model]
    return flags


def _checked(given: Mapping[str, Any], places: Mapping[str, str]) -> Config:
    """The config of what was given. places: how a setting was given, if not as a flag; for errors."""
    values = {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        name = place.split("`")[0].split("[")[0]
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        where = places.get(name, to_flag(name))
        shown = "" if name in SECRET else f" {values.get(name)}"
        raise ConfigError(f"{where}{shown}: {reason[0].lower()}{reason[1:]}") from None
