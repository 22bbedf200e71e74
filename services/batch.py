"""`octavo batch`: answers a file of requests into another file, and goes on where it was stopped."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from octavo.services.batch_files import BadLine, Done, Request, bad_line_result, read_done, read_requests, result_line
from octavo.services.remote import checked_url
from octavo.shared.arguments import Parser
from octavo.shared.config import API_KEY_VARIABLE, key_to_send, parse
from octavo.shared.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.services.llm.client import Client
    from octavo.services.llm.progress import Progress

PROG = "octavo batch"
MOST_FAILED = 100  # what the exit code can tell
STOPPED = 101
INTERRUPTED = 130
_AGAIN = "the same command goes on with what is missing"


@dataclass
class Tally:
    """Of all requests of the input, whenever they were done."""

    answered: int = 0
    failed: int = 0


def batch(arguments: Sequence[str]) -> int:
    """Returns how many requests failed, at most MOST_FAILED; or STOPPED, if they are not all done."""
    tally = Tally()
    try:
        options, settings = parser().parse_known_args(arguments)
        _run(options, settings, tally)
    except KeyboardInterrupt:
        print(f"octavo: stopped; {_AGAIN}", file=sys.stderr)
        return INTERRUPTED
    except OctavoError as error:
        print(f"octavo: {error}" + (f"; {_AGAIN}" if tally.answered else ""), file=sys.stderr)
        return STOPPED
    print(f"{tally.answered} requests answered, {tally.failed} failed; see {options.output}")
    return min(tally.failed, MOST_FAILED)


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROG,
        usage=f"{PROG} -i FILE -o FILE [--url URL | MODEL] [options] [settings of octavo serve]",
        description="Answer a file of requests in OpenAI's batch format, by a running server or by a model of its own.",
        epilog=f"The exit code is the number of requests that failed, at most {MOST_FAILED}; {STOPPED}: not all were "
        "done, and the same command goes on. Without --url all other arguments are those of `octavo serve`.",
    )
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="FILE",
                        help="a JSON request a line: custom_id, method, url, body")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE",
                        help="results are added to it; what it has is not asked again")  # fmt: skip
    parser.add_argument("--url", help=f"a running server; its key is read from {API_KEY_VARIABLE}")
    parser.add_argument("--concurrency", type=int, default=256, metavar="INT",
                        help="open requests (default: %(default)s)")  # fmt: skip
    parser.add_argument("--retries", type=int, default=8, metavar="INT",
                        help="of what is put off, or has lost its connection (default: %(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS",
                        help="for an answer (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser


def _run(options: argparse.Namespace, settings: Sequence[str], tally: Tally) -> None:
    """Raises OctavoError if not all requests were done."""
    for name, least in (("concurrency", 1), ("retries", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} {getattr(options, name)}: it must be {least} or more")
    if options.url is not None and settings:
        raise ConfigError(f"{settings[0]}: beside --url no model and no settings are taken; see {PROG} --help")
    try:
        total = sum(1 for _ in read_requests(options.input))
        done = read_done(options.output)
        with _client(options, settings) as client, options.output.open("ab") as output:
            asyncio.run(_answer_all(options, client, done, output, tally, total))
    except OSError as error:
        raise ConfigError(f"{error.filename or options.output}: {error.strerror}") from None


@contextmanager
def _client(options: argparse.Namespace, settings: Sequence[str]) -> "Iterator[Client]":
    """Of the server that is named, or of one for this batch."""
    # What only this command needs: it is imported to complete command lines, too.
    from octavo.services.llm.client import Client
    from octavo.services.llm.server import LocalServer

    if options.url is not None:
        key = key_to_send()
        yield Client(checked_url(options.url), key, options.retries, options.timeout)
        return
    with closing(LocalServer(parse(settings, PROG, ""))) as server:
        url = server.address.result()
        yield Client(url, server.api_key, options.retries, options.timeout, lambda: server.is_alive)


async def _answer_all(
    options: argparse.Namespace, client: "Client", done: Done, output: IO[bytes], tally: Tally, total: int
) -> None:
    from octavo.services.llm.client import PUT_OFF, affordable_connections, run_all
    from octavo.services.llm.progress import progress

    with progress("Requests", 0 if options.no_progress else total) as bar:

        async def answer(each: Request | BadLine) -> None:
            if isinstance(each, BadLine):
                line, is_good = bad_line_result(each), False
            else:
                got = await client.post(each.path, each.body)
                if got.status in PUT_OFF:
                    raise ConfigError(f"{client.url} takes no more requests ({got.status} after all retries)")
                line, is_good = result_line(each, got.status, got.request_id, got.body), got.status == 200
            output.write(line)
            output.flush()
            tally.answered += is_good
            tally.failed += not is_good
            bar.update()

        try:
            await client.check()
            await run_all(
                _missing(options.input, done, tally, bar), answer, affordable_connections(options.concurrency)
            )
        finally:
            await client.close()


def _missing(path: Path, done: Done, tally: Tally, bar: "Progress") -> Iterator[Request | BadLine]:
    """What the output lacks; the rest is counted."""
    for each in read_requests(path):
        known = each.line in done.bad_lines if isinstance(each, BadLine) else each.custom_id in done.ids
        if not known:
            yield each
            continue
        is_good = isinstance(each, Request) and done.ids[each.custom_id]
        tally.answered += is_good
        tally.failed += not is_good
        bar.update()
