"""`octavo complete`: goes on with a text, streamed to standard output."""

import argparse
import sys
from collections.abc import Sequence

from octavo.services.remote import add_server_options, stream_text
from octavo.shared.arguments import Parser
from octavo.shared.errors import ConfigError

INTERRUPTED = 130


def complete(arguments: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError."""
    options = parser().parse_args(arguments)
    prompt = sys.stdin.read() if options.prompt in (None, "-") else options.prompt
    if not prompt:
        raise ConfigError("there is no prompt: give it as an argument, or on standard input")
    if options.echo:
        print(prompt, end="")
    fields = {
        "prompt": prompt, "max_tokens": options.max_tokens, "temperature": options.temperature,
        "seed": options.seed, "stop": options.stop,
    }  # fmt: skip
    try:
        for piece in stream_text(options, "/v1/completions", fields):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        print(flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = Parser("octavo complete", description="Have a running server go on with a text; no chat template is used.")
    parser.add_argument("prompt", nargs="?", help="the text (default, and for -: standard input)")
    add_server_options(parser)
    parser.add_argument("--max-tokens", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the server's)")
    parser.add_argument("--seed", type=int, help="of the random choices")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="text to end before; may be repeated")
    parser.add_argument("--echo", action="store_true", help="print the prompt before its completion")
    return parser
