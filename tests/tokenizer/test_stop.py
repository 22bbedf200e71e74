"""Stop strings are found wherever the text is split, and no part of one is shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.services.tokenizer.stop import StopScanner
from octavo.shared.errors import InvalidRequest

_TEXTS = st.text(alphabet="ab\n", max_size=40)
_STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def _search(text: str, stops: list[str], include_stop: bool) -> tuple[str, str | None]:
    """The text and the stop string by trying every end, then every stop string, longest first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return (text[:end] if include_stop else text[: end - len(stop)]), stop
    return text, None


def _split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@settings(deadline=None)  # the machine may be busy
@given(_TEXTS, _STOPS, st.lists(st.integers(0, 40), max_size=20), st.booleans())
def test_every_split_of_a_text_gives_the_result_of_one_search(
    text: str, stops: list[str], cuts: list[int], include_stop: bool
) -> None:
    scanner = StopScanner(stops, include_stop=include_stop)

    results = [scanner.feed(part) for part in _split(text, cuts)]
    shown = "".join(result[0] for result in results) + scanner.flush()

    assert (shown, results[-1][1]) == _search(text, stops, include_stop)


@settings(deadline=None)  # the machine may be busy
@given(_TEXTS, _STOPS)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)

    shown, found = scanner.feed(text)
    held = text[len(shown) :]

    assert found or not held or any(stop.startswith(held) for stop in stops)
    assert found or not any(
        stop.startswith(text[start:]) for stop in stops for start in range(len(shown)) if text[start:]
    )


def test_a_stop_string_may_be_spread_over_feeds() -> None:
    scanner = StopScanner(["STOP"])

    results = [scanner.feed(part) for part in ("goS", "T", "OPped")]

    assert results == [("go", None), ("", None), ("", "STOP")]
    assert scanner.flush() == ""


def test_what_turns_out_to_be_no_stop_string_is_shown() -> None:
    scanner = StopScanner(["STOP"])

    results = [scanner.feed(part) for part in ("ST", "ART ST")]

    assert results == [("", None), ("START ", None)]
    assert scanner.flush() == "ST"


def test_of_stop_strings_that_end_together_the_one_that_begins_first_counts() -> None:
    assert StopScanner(["OP", "STOP"]).feed("a STOP") == ("a ", "STOP")


def test_nothing_is_waited_for_once_a_stop_string_is_complete() -> None:
    assert StopScanner(["abc", "ab"]).feed("-ab") == ("-", "ab")


def test_the_stop_string_is_shown_where_that_is_asked_for() -> None:
    scanner = StopScanner(["STOP"], include_stop=True)

    results = [scanner.feed(part) for part in ("go ST", "OP on")]

    assert results == [("go ST", None), ("OP", "STOP")]


def test_nothing_is_shown_after_a_stop_string() -> None:
    scanner = StopScanner(["."])

    results = [scanner.feed(part) for part in ("a.b", "c")]

    assert results == [("a", "."), ("", ".")]


def test_without_stop_strings_all_text_is_shown_at_once() -> None:
    assert StopScanner([]).feed("text") == ("text", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 1 character") as raised:
        StopScanner(["a", ""])

    assert raised.value.param == "stop"


def test_a_text_of_near_misses_costs_no_more_than_its_length() -> None:
    scanner = StopScanner(["a" * 2000 + "b"])

    shown, found = scanner.feed("a" * 200_000)

    assert (len(shown), found) == (198_000, None)
