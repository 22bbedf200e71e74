"""What stands around the tokenizer's core: a vocabulary, a gateway's journal, a scheduler's voice."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.services.tokenizer.compiling import Compiling
from octavo.services.tokenizer.core import TokenizerCore
from octavo.services.tokenizer.parsers import Parsers
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.services.tokenizer.workshop import Workshop
from octavo.shared.messages import (
    Begin,
    CallFailed,
    CallId,
    Cancel,
    CancelCall,
    Enqueue,
    Generate,
    ModelInfo,
    Progress,
    Ready,
    RequestId,
    Spent,
    Text,
    Tokens,
    pack,
    unpack,
)

CALL = CallId(bytes(range(16)))
MAX_LEN = 256
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


def make_vocabulary(template: str = TEMPLATE) -> Vocabulary:
    """All bytes, a few longer tokens, and <|end|>, which ends a completion."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "a"), ("a", "b"), ("Ã", "©"), ("ð", "Ł")]
    ids = {token: token_id for token_id, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return Vocabulary(tokenizer, eos_token="<|end|>", chat_template=template)


VOCABULARY = make_vocabulary()
[END] = VOCABULARY.eos_ids
MODEL = ModelInfo(VOCABULARY.size, MAX_LEN, 16, 64, 8, 512, "sim", "none")
READY = Ready(b"boot", MODEL)


def encode(text: str) -> list[int]:
    return VOCABULARY.encode(text, add_special_tokens=False)


def completion(**fields: object) -> Generate:
    """A completion call; fields of its body replace the usual ones."""
    body = {"prompt": "Hi", "max_tokens": 200, "stream": True} | fields
    return Generate(CALL, "completion", json.dumps(body).encode(), 1_700_000_000, "model")


def chat(**fields: object) -> Generate:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True} | fields
    return Generate(CALL, "chat", json.dumps(body).encode(), 1_700_000_000, "model")


class Pipeline:
    """A core with the gateway on one side and the scheduler on the other; keeps all that it says."""

    def __init__(
        self, vocabulary: Vocabulary | None = VOCABULARY, is_ready: bool = True, parsers: Parsers | None = None
    ) -> None:
        workshop = Workshop(vocabulary, frozenset([END]), parsers=parsers)
        self.core = TokenizerCore(workshop, Compiling(Path("nowhere"), vocabulary))
        self.texts: list[Text] = []
        self.failures: list[CallFailed] = []
        self.enqueued: list[Enqueue] = []
        self.cancelled: list[RequestId] = []
        if is_ready:
            self.ready()

    def ready(self, boot: bytes = b"boot") -> None:
        self.core.hear_scheduler(Ready(boot, MODEL))
        self.collect()

    def send(self, message: Generate | CancelCall, gateway: int = 0) -> list[Enqueue]:
        """A gateway's message; returns the requests that it leads to."""
        num_before = len(self.enqueued)
        self.core.hear_gateway(gateway, message)
        self.collect()
        return self.enqueued[num_before:]

    def tokens(
        self,
        request: RequestId,
        start: int,
        token_ids: Sequence[int],
        reason: str | None = None,
        begin: Begin | None = None,
    ) -> None:
        """Tokens of one request, from a place in its completion on."""
        finished = {} if reason is None else {0: reason}
        begins = {} if begin is None else {0: begin}
        counts = pack([len(token_ids)])
        self.core.hear_scheduler(Tokens([request], pack([start]), counts, pack(token_ids), finished, begins=begins))
        self.collect()

    def collect(self) -> None:
        outbox = self.core.take_outbox()
        for _, message in outbox.to_gateways:
            if isinstance(message, Text):
                self.texts.append(message)
            else:
                assert isinstance(message, CallFailed)
                self.failures.append(message)
        for message in outbox.to_scheduler:
            if isinstance(message, Enqueue):
                self.enqueued.append(message)
            else:
                assert isinstance(message, Cancel)
                self.cancelled += message.ids

    @property
    def chunks(self) -> list[tuple[bytes, int, bytes, int]]:
        """All chunks so far: bytes, choice, token ids, characters."""
        return [
            entry
            for text in self.texts
            for entry in zip(text.chunks, text.choices, text.token_ids, text.num_chars, strict=True)
        ]

    @property
    def spent(self) -> Spent:
        """What the one call that has ended came to."""
        [(place, spent)] = [each for text in self.texts for each in text.spent.items()]
        assert place in self.texts[-1].finished
        return spent

    @property
    def is_finished(self) -> bool:
        """The gateway was told that nothing follows."""
        return any(text.finished for text in self.texts)


def journal(chunks: Sequence[tuple[bytes, int, bytes, int]]) -> dict[int, Progress]:
    """What a gateway remembers of chunks that it passed on."""
    progress: dict[int, Progress] = {}
    for _, choice, token_ids, num_chars in chunks:
        known = progress.get(choice, Progress())
        progress[choice] = Progress(known.token_ids + token_ids, num_chars)
    return progress


def events(chunks: Sequence[tuple[bytes, int, bytes, int]]) -> list[dict[str, object]]:
    """The JSON of all server-sent events, without the closing [DONE]."""
    lines = b"".join(chunk for chunk, _, _, _ in chunks).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]


class Read:
    """What a client makes of the events of one choice."""

    def __init__(self, chunks: Sequence[tuple[bytes, int, bytes, int]], index: int = 0) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.roles: list[str] = []
        self.reasons: list[str] = []
        for event in events(chunks):
            for choice in event["choices"]:  # type: ignore[attr-defined]  # parsed JSON
                if choice["index"] == index:
                    self._take(choice)

    def _take(self, choice: dict[str, object]) -> None:
        delta = choice.get("delta", choice)
        assert isinstance(delta, dict)
        self.text += str(delta.get("content", delta.get("text", "")))
        if delta.get("role"):
            self.roles.append(delta["role"])
        ids = choice.get("token_ids", [])
        assert isinstance(ids, list)
        self.token_ids += ids
        if choice["finish_reason"]:
            self.reasons.append(str(choice["finish_reason"]))


def output_ids(request: Enqueue) -> list[int]:
    return unpack(request.output_ids).tolist()
