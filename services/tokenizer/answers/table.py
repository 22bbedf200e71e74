"""Which answer each endpoint gives."""

from octavo.services.tokenizer.answers.chat import ChatAnswer
from octavo.services.tokenizer.answers.common import Answer
from octavo.services.tokenizer.answers.completion import CompletionAnswer
from octavo.services.tokenizer.logprobs import Spelling
from octavo.shared.messages import Generate
from octavo.shared.openai import ChatRequest, Options


def make_answer(message: Generate, options: Options, spelling: Spelling) -> Answer:
    """For a call with these options."""
    name = options.request_id or message.id.hex()
    if isinstance(options, ChatRequest):
        return ChatAnswer(f"chatcmpl-{name}", message.created_s, message.model, options, spelling)
    return CompletionAnswer(f"cmpl-{name}", message.created_s, message.model, options, spelling)
