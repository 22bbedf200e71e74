"""Workshop: all that a model's calls are made with. Makes a call with its choices from a request, and short answers."""

from hashlib import blake2b

import msgspec

from octavo.services.tokenizer.answers.table import make_answer
from octavo.services.tokenizer.call import Call
from octavo.services.tokenizer.choice import Choice
from octavo.services.tokenizer.logprobs import Spelling
from octavo.services.tokenizer.params import Defaults, ParamsMaker
from octavo.services.tokenizer.parsers import Parsers
from octavo.services.tokenizer.prompts import Prompt, Prompter
from octavo.services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from octavo.services.tokenizer.wanted_grammar import wanted_grammar
from octavo.shared.anthropic import CountTokensRequest, TokenCount
from octavo.shared.config import Config
from octavo.shared.endpoints import Completing, Immediate
from octavo.shared.grammar import GrammarSpec
from octavo.shared.messages import Enqueue, Generate, ModelInfo, pack, request_id
from octavo.shared.model_files import ModelFiles, locate, read_config, read_generation_config
from octavo.shared.openai import ChatRequest, Options
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.tokenization import TokenizeRequest


class Workshop:
    """Of one model. Holds nothing of a call."""

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        eos_ids: frozenset[int],
        defaults: Defaults | None = None,
        trusts_templates: bool = False,
        parsers: Parsers | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self._parsers = parsers or Parsers(vocabulary)
        self._prompter = Prompter(vocabulary, trusts_templates)
        self._params = ParamsMaker(vocabulary, eos_ids, defaults or Defaults())

    def prompts(self, options: Options, model: ModelInfo) -> list[Prompt]:
        """Raises InvalidRequest."""
        return self._prompter.prompts(options, model)

    def grammar(self, options: Options, prompts: list[Prompt]) -> tuple[GrammarSpec, str] | None:
        """That a request's completions must follow, and the field that asks for it. Raises InvalidRequest."""
        return wanted_grammar(options, self._parsers.lead(prompts[0].rendered))

    def call(
        self,
        message: Generate,
        wanted: Completing,
        options: Options,
        prompts: list[Prompt],
        gateway: int,
        model: ModelInfo,
        grammar: str,
    ) -> Call:
        """Make a call. Raises InvalidRequest.

        options: what `wanted` asks for; grammar: the key of a compiled one, if its completions must follow one.
        """
        copies, choices, salt = options.num_copies, [], _salt(message, options)
        for place, prompt in enumerate(prompts):
            packed = pack(prompt.token_ids)
            hashes = root_hash(salt) + hash_blocks(packed, model.block_size, salt)
            for copy in range(copies):
                index = place * copies + copy
                params = self._params.make(options, message.id, copy, len(prompt.token_ids), model, grammar)
                params = self._with_budget(params, options, prompt)
                request = Enqueue(request_id(message.id, index), packed, params, hashes, priority=options.priority or 0)
                choice = Choice(
                    index, request, prompt.token_ids, self.vocabulary, options,
                    self._parsers.make(options, prompt.rendered), self._parsers.shown_ids(options),
                )  # fmt: skip
                choice.prompt_text = prompt.echo
                choices.append(choice)
        spelling = Spelling(self.vocabulary, bool(options.return_tokens_as_token_ids))
        return Call(message, options, gateway, choices, make_answer(message, wanted, spelling))

    def _with_budget(self, params: SamplingParams, options: Options, prompt: Prompt) -> SamplingParams:
        """With the budget of its reasoning, if it has one."""
        budget = options.thinking_token_budget if isinstance(options, ChatRequest) else None
        tags = self._parsers.thinking_tags(prompt.rendered)
        if budget is None or tags is None or self.vocabulary is None:
            return params
        begin, end = (pack(self.vocabulary.encode(tag, add_special_tokens=False)) for tag in tags)
        return msgspec.structs.replace(params, thinking_budget=budget, thinking_begin=begin, thinking_end=end)

    def answer(self, request: Immediate, model: ModelInfo) -> bytes:
        """The body for a request that needs no completion. Raises InvalidRequest."""
        if isinstance(request, TokenizeRequest):
            return msgspec.json.encode(self._prompter.tokenize(request, model))
        if isinstance(request, CountTokensRequest):
            return msgspec.json.encode(TokenCount(self._prompter.count(request.to_chat(), model)))
        return msgspec.json.encode(self._prompter.detokenize(request, model))


def load_workshop(config: Config) -> Workshop:
    """For the configured model. Raises ModelError."""
    files = locate(config.model)
    vocabulary = load_vocabulary(files)
    eos_ids = _eos_ids(files) if vocabulary is None else vocabulary.eos_ids
    defaults = Defaults()
    if config.generation_config == "auto":
        known = {name: value for name, value in read_generation_config(files).items() if _is_number(value)}
        defaults = msgspec.convert(known, Defaults)
    parsers = Parsers(vocabulary, config.tool_call_parser, config.reasoning_parser)
    return Workshop(vocabulary, eos_ids, defaults, config.trust_request_chat_template, parsers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _eos_ids(files: ModelFiles) -> frozenset[int]:
    """End-of-sequence ids of a model without a tokenizer."""
    found = (read_config(files) | read_generation_config(files)).get("eos_token_id")
    return frozenset([found] if isinstance(found, int) else found if isinstance(found, list) else [])


def _salt(message: Generate, options: Options) -> bytes:
    """Separates prefix caches by tenant, and by what the client wants apart."""
    if options.cache_salt is None:
        return message.salt
    return blake2b(options.cache_salt.encode(errors="surrogatepass"), key=message.salt[:64], digest_size=32).digest()
