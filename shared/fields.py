"""The bounds of request fields that several endpoints have in common, and one sentence for a field outside of them."""

from typing import Annotated

from msgspec import Meta

from octavo.shared.errors import InvalidRequest
from octavo.shared.sampling import MAX_LOGPROBS, MAX_SEED

MAX_CHOICES = 128
MAX_TOKENS = 2**24  # far above any context; the model's own limit is checked against the prompt's length
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_STOP_TOKENS = 256

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
TokensOrNone = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=MAX_SEED)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Repetition = Annotated[float, Meta(ge=0.01, le=100.0)]
Top = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Biases = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)]
StopTokens = Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)]
BadWords = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=MAX_BAD_WORDS)]
AllowedTokens = Annotated[list[TokenId], Meta(min_length=1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Truncation = Annotated[int, Meta(ge=-1, le=MAX_TOKENS)]
Label = Annotated[str, Meta(max_length=256)]


def invalid_field(reason: str) -> InvalidRequest:
    """msgspec's "Expected `int`, got `str` - at `$.n`" as "n: expected `int`, got `str`"."""
    what, _, place = reason.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    if what.startswith("Object missing required field"):
        path = ".".join(part for part in (path, what.split("`")[1]) if part)
        what = "this field is required"
    param = path.split(".")[0].split("[")[0] or None
    return InvalidRequest(f"{path or 'the body'}: {what[:1].lower()}{what[1:]}", param)
