"""The `octavo` command: picks the subcommand and prints its errors as one plain sentence."""

import os
import sys
from collections.abc import Callable, Sequence

from octavo import __version__
from octavo.shared.errors import OctavoError
from octavo.shared.pulse import health

USAGE = """\
usage: octavo COMMAND [options]

  serve [MODEL]   serve a model over HTTP; with no model, SmolLM2-135M-Instruct
  chat            talk to a running server in the terminal
  complete        have a running server go on with a text
  batch           answer a file of requests into another file
  bench           measure an engine or a server
  doctor          what this machine has, what would be used, what is missing
  completion      the script that completes this command's words in bash, zsh or fish
  version         the version

octavo COMMAND --help tells more.
"""


def main() -> None:
    command, *arguments = sys.argv[1:] or ["help"]
    if command in ("help", "--help", "-h"):
        print(USAGE, end="")
        return
    run = COMMANDS.get(command)
    if run is None:
        print(f"octavo: there is no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(run(arguments))
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


# Each command imports what it needs itself: `octavo health` runs every few seconds and should cost next to nothing.


def _serve(arguments: Sequence[str]) -> int:
    from octavo.services.launch import serve
    from octavo.shared.config import parse

    return serve(parse(arguments, "octavo serve", "Serve a model over HTTP."))


def _chat(arguments: Sequence[str]) -> int:
    from octavo.services.chat import chat

    return chat(arguments)


def _complete(arguments: Sequence[str]) -> int:
    from octavo.services.complete import complete

    return complete(arguments)


def _batch(arguments: Sequence[str]) -> int:
    from octavo.services.batch import batch

    return batch(arguments)


def _completion(arguments: Sequence[str]) -> int:
    from octavo.services.completion import completion

    return completion(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from octavo.services.bench.command import bench

    return bench(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from octavo.services.doctor import doctor

    return doctor(arguments)


def _version(arguments: Sequence[str]) -> int:
    print(f"octavo {__version__}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "chat": _chat,
    "complete": _complete,
    "batch": _batch,
    "completion": _completion,
    "bench": _bench,
    "doctor": _doctor,
    "health": health,
    "version": _version,
    "--version": _version,
}

if __name__ == "__main__":
    main()
