"""`octavo chat`: a conversation in the terminal with a running server, streamed as it is written."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.services.remote import add_server_options, stream_text
from octavo.shared.arguments import Parser
from octavo.shared.errors import ConfigError

HISTORY_LINES = 1000
MARK = '"""'
HELP = """\
A line ends a turn; \\ at its end goes on in the next one, and so does all between two lines of \"\"\".
  /clear         begin anew; the system message stays
  /system TEXT   set the system message and begin anew; without TEXT there is none
  /save FILE     write the conversation as the JSON list that the API takes as messages
  /help          this
An empty line, /exit or Ctrl-D ends the chat, Ctrl-C an answer."""


class Conversation:
    """The messages so far, and what the commands do to them."""

    def __init__(self, system: str | None) -> None:
        self.messages: list[dict[str, str]] = []
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Forget all, and begin with this system message, if there is one."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def command(self, line: str) -> str:
        """Do what a line with / asks for; returns what to say of it."""
        name, _, rest = line.partition(" ")
        run = {"/clear": self._clear, "/system": self._set_system, "/save": self._save}.get(name)
        return HELP if name == "/help" else run(rest.strip()) if run else f"There is no command {name}; see /help."

    def _clear(self, rest: str) -> str:
        system = self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None
        self.begin(system)
        return "The conversation begins anew."

    def _set_system(self, text: str) -> str:
        self.begin(text)
        return "The conversation begins anew" + (" with this system message." if text else " without system message.")

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs the name of a file."
        try:
            Path(name).expanduser().write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"{name} cannot be written: {error.strerror}."
        return f"{len(self.messages)} messages are in {name}."


def chat(arguments: Sequence[str]) -> int:
    """Read turns, answer each; returns the exit code. Raises ConfigError."""
    options = parser().parse_args(arguments)
    conversation = Conversation(options.system)
    if not sys.stdin.isatty():
        for line in _turns(input):
            _answer(options, conversation, line)
        return 0
    print(f"Talking to {options.url}. /help tells more; an empty line or Ctrl-D ends it.")
    with _line_editor():
        for line in _turns(lambda: input("> ")):
            if line == "/exit":
                return 0
            if line.startswith("/"):
                print(conversation.command(line))
                continue
            try:
                _answer(options, conversation, line)
            except ConfigError as error:  # the conversation is still there, and the server may come back
                print(f"octavo: {error}", file=sys.stderr)
                conversation.messages.pop()
    return 0


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "octavo chat", description="Talk to a running server.", epilog="/help in the chat tells its commands."
    )
    add_server_options(parser)
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of each answer (default: %(default)s)")
    return parser


def _answer(options: argparse.Namespace, conversation: Conversation, line: str) -> None:
    """One turn, shown as it is written. Raises ConfigError, with the question left as the last message."""
    conversation.add("user", line)
    answer = ""
    fields = {
        "messages": conversation.messages, "temperature": options.temperature, "max_tokens": options.max_tokens,
    }  # fmt: skip
    try:
        for piece in stream_text(options, "/v1/chat/completions", fields):
            answer += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass  # what has come of the answer stays in the conversation
    print(flush=True)
    conversation.add("assistant", answer)


def _turns(read: Callable[[], str]) -> Iterator[str]:
    """What is typed, turn by turn, until an empty one or the end of the input."""
    while (line := _line(read)) is not None:
        lines = [line]
        if line.strip() == MARK:
            lines = []
            while (more := _line(read)) is not None and more.strip() != MARK:
                lines.append(more)
        while lines and lines[-1].endswith("\\") and (more := _line(read)) is not None:
            lines[-1:] = [lines[-1][:-1], more]
        turn = "\n".join(lines).strip()
        if not turn:
            return
        yield turn


def _line(read: Callable[[], str]) -> str | None:
    """None at the end of the input."""
    try:
        return read().rstrip()
    except (EOFError, KeyboardInterrupt):
        return None


@contextmanager
def _line_editor() -> Iterator[None]:
    """Arrow keys, search and a history that is kept, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "octavo"
    path = folder / "chat_history"
    readline.set_history_length(HISTORY_LINES)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError as error:
        print(f"octavo: no history is kept: {error}", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        readline.write_history_file(path)
