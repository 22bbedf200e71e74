"""Answers of /v1/completions: OpenAI's fields with vLLM's additions."""

from octavo.services.tokenizer.answers.common import DONE, Delta, Finished, Opening, Usage, encode
from octavo.services.tokenizer.logprobs import Spelling, TokenLogprobs
from octavo.shared.openai import Options

_PLAIN_TAIL = b',"logprobs":null,"finish_reason":null}]}\n\n'


class CompletionAnswer:
    """See `common.Answer`."""

    num_events = 0

    def __init__(self, id: str, created_s: int, model: str, options: Options, spelling: Spelling) -> None:
        self._head = {"id": id, "object": "text_completion", "created": created_s, "model": model}
        self._chunk_head = b"data: " + encode(self._head)[:-1] + b',"choices":[{"index":'
        self._options, self._spelling = options, spelling
        self._shows_ids = bool(options.return_token_ids)
        self._offsets: dict[int, int] = {}  # characters of a choice's text that logprobs were told of

    def open(self, index: int, opening: Opening) -> bytes:
        fields: dict[str, object] = {"index": index, "text": opening.echo, "logprobs": None, "finish_reason": None}
        if self._options.echoes and self._options.num_top is not None:
            fields["logprobs"] = self._logprobs(index, _prompt_tokens(opening))
        if self._shows_ids:
            fields["prompt_token_ids"] = list(opening.prompt_ids)
        elif not self._options.echoes:
            return b""
        return b"data: " + encode({**self._head, "choices": [fields]}) + b"\n\n"

    def chunk(self, delta: Delta) -> bytes:
        if delta.is_plain and not self._shows_ids:  # most of all
            return self._chunk_head + b"%d" % delta.index + b',"text":' + encode(delta.text) + _PLAIN_TAIL
        reason = b"null" if delta.finish_reason is None else encode(delta.finish_reason)
        logprobs = b"null"
        if delta.logprobs is not None:
            logprobs = encode(self._logprobs(delta.index, list(delta.logprobs)))
        tail = b',"logprobs":' + logprobs + b',"finish_reason":' + reason
        if delta.stop_reason is not None:
            tail += b',"stop_reason":' + encode(delta.stop_reason)
        if self._shows_ids:
            tail += b',"token_ids":' + encode(list(delta.token_ids))
        tail += b"}]" if delta.usage is None else b'}],"usage":' + encode(delta.usage)
        return self._chunk_head + str(delta.index).encode() + b',"text":' + encode(delta.text) + tail + b"}\n\n"

    def end(self, usage: Usage) -> bytes:
        if not self._options.includes_usage:
            return DONE
        return b"data: " + encode({**self._head, "choices": [], "usage": usage}) + b"\n\n" + DONE

    def body(self, choices: list[Finished], usage: Usage) -> bytes:
        return encode({**self._head, "choices": [self._choice(each) for each in choices], "usage": usage})

    def _choice(self, each: Finished) -> dict[str, object]:
        logprobs = None
        if each.logprobs is not None:
            before = _prompt_tokens(each.opening) if self._options.echoes else []
            logprobs = self._logprobs(each.index, [*before, *each.logprobs])
        choice: dict[str, object] = {
            "index": each.index,
            "text": each.opening.echo + each.text,
            "logprobs": logprobs,
            "finish_reason": each.finish_reason,
            "stop_reason": each.stop_reason,
        }
        if self._options.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._spelling.prompt(each.opening.prompt_logprobs or ())
        if self._shows_ids:
            choice |= {"token_ids": list(each.token_ids), "prompt_token_ids": list(each.opening.prompt_ids)}
        return choice

    def _logprobs(self, index: int, tokens: list[TokenLogprobs]) -> dict[str, object]:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(self._spelling.of(each.token_id)) for each in tokens)
        return self._spelling.completion(tokens, offset)


def _prompt_tokens(opening: Opening) -> list[TokenLogprobs]:
    first = TokenLogprobs(opening.prompt_ids[0], 0.0, [], is_known=False)
    return [first, *(opening.prompt_logprobs or ())]
