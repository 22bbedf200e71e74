"""How the options of `octavo bench` are read from what is typed."""

import argparse
from collections.abc import Callable, Collection

FLAGS_OF_SERVE = "All other flags are those of `octavo serve`."


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def positives(text: str) -> list[int]:
    """`1,32,256`."""
    return [positive(each) for each in text.split(",")]


def rates(text: str) -> list[float]:
    """`0.5,10`: numbers above 0."""
    values = [float(each) for each in text.split(",")]
    if not all(0 < each < 1e9 for each in values):
        raise argparse.ArgumentTypeError(f"{text}: a rate must be above 0")
    return values


def seconds(text: str) -> float:
    """A number from 0."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0")
    return value


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads `single,mixed`."""

    def read(text: str) -> list[str]:
        for each in text.split(","):
            if each not in known:
                raise argparse.ArgumentTypeError(f"{each!r} is none of {', '.join(known)}")
        return text.split(",")

    return read
