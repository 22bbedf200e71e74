"""Where API keys come from and what one may look like. No message ever shows a key."""

import re
from collections.abc import Sequence
from pathlib import Path

from octavo.shared.errors import ConfigError

MAX_KEYS_CHARS = 100_000  # they travel in one variable, and Linux allows 131,072 bytes for one

_SHAPE = re.compile(r"[!-+\--~]+")  # what a header can carry, without the comma that separates keys


def gather_keys(flags: Sequence[str] | None, file: str | None, variable: str | None) -> list[str] | None:
    """The keys of the flags and the file, or else those of the variable; None: there are none.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    if flags is None and file is None:
        keys = [key.strip() for key in (variable or "").split(",")]
        return [key for key in keys if key] or None
    return [*(flags or ()), *(_read(file) if file is not None else ())]


def check_keys(keys: Sequence[str]) -> None:
    """Raises ConfigError for what no client could send."""
    for place, key in enumerate(keys, 1):
        if not _SHAPE.fullmatch(key):
            raise ConfigError(
                f"API key {place} of {len(keys)} is empty or has a character that is not allowed: a key is printable "
                "ASCII without spaces and commas (--api-key, --api-key-file)"
            )
    if (size := sum(map(len, keys)) + len(keys)) > MAX_KEYS_CHARS:
        raise ConfigError(f"the API keys have {size} characters together; at most {MAX_KEYS_CHARS} are taken")


def _read(path: str) -> list[str]:
    """One key a line; empty lines and those that begin with # are passed over."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--api-key-file {path} cannot be read: {reason}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key: it should have one a line")
    return keys
