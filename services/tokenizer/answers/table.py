"""Which answer each endpoint gives."""

from octavo.services.tokenizer.answers.anthropic import MessagesAnswer
from octavo.services.tokenizer.answers.chat import ChatAnswer
from octavo.services.tokenizer.answers.common import Answer
from octavo.services.tokenizer.answers.completion import CompletionAnswer
from octavo.services.tokenizer.answers.responses import ResponsesAnswer
from octavo.services.tokenizer.logprobs import Spelling
from octavo.shared.anthropic import MessagesRequest
from octavo.shared.endpoints import Completing
from octavo.shared.messages import Generate
from octavo.shared.openai import ChatRequest
from octavo.shared.responses import ResponsesRequest


def make_answer(message: Generate, wanted: Completing, spelling: Spelling) -> Answer:
    """For a call of this request."""
    if isinstance(wanted, ResponsesRequest):
        return ResponsesAnswer(message.id, message.created_s, message.model, wanted, spelling)
    if isinstance(wanted, MessagesRequest):
        return MessagesAnswer(message.id, message.model)
    name = wanted.request_id or message.id.hex()
    if isinstance(wanted, ChatRequest):
        return ChatAnswer(f"chatcmpl-{name}", message.created_s, message.model, wanted, spelling)
    return CompletionAnswer(f"cmpl-{name}", message.created_s, message.model, wanted, spelling)
