"""`octavo completion`: the script that has a shell complete the words of the `octavo` command."""

import argparse
from collections.abc import Sequence

from octavo.services import batch, chat, complete
from octavo.shared.arguments import Parser
from octavo.shared.config import settings_parser
from octavo.shared.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def completion(arguments: Sequence[str]) -> int:
    """Print the script; returns the exit code. Raises ConfigError."""
    options = _own_parser().parse_args(arguments)
    try:
        import shtab
    except ImportError:
        raise ConfigError("octavo completion needs shtab: pip install 'octavo[cli]'") from None
    print(shtab.complete(_all_commands(), options.shell))
    return 0


def _all_commands() -> argparse.ArgumentParser:
    """One parser with a subparser for each command."""
    everything = argparse.ArgumentParser("octavo", add_help=False)
    commands = everything.add_subparsers()
    for parser in (
        settings_parser("octavo serve", "Serve a model over HTTP."),
        chat.parser(),
        complete.parser(),
        batch.parser(),
        settings_parser("octavo doctor", "What serve with the same flags would find and use."),
        _own_parser(),
    ):
        about = str(parser.description).replace("%", "%%")
        commands.add_parser(parser.prog.split()[1], parents=[parser], add_help=False, help=about, description=about)
    bench = commands.add_parser("bench", add_help=False, help="Measure an engine or a server.")
    bench.add_argument("what", choices=("throughput", "latency", "serve"))
    commands.add_parser("version", add_help=False, help="The version.")
    return everything


def _own_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "octavo completion",
        description="Print the script that completes octavo's words.",
        epilog="bash: source <(octavo completion bash); zsh: octavo completion zsh > a folder of $fpath, as _octavo; "
        "fish: octavo completion fish > ~/.config/fish/completions/octavo.fish",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser
