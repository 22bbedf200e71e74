"""The command of one gateway process: reads its settings, then serves until it is told to stop."""

import argparse
import asyncio
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from octavo.services.gateway.service import Gateway
from octavo.shared.config import Config, parse
from octavo.shared.errors import ConfigError
from octavo.shared.process import StopFlag, report, set_up_logs


def main() -> None:
    try:
        index, rest = _take_index(sys.argv[1:])
        config = parse(rest, "octavo gateway", "HTTP in, server-sent events out")
        folder = _folder(config)
    except ConfigError as error:
        sys.stderr.write(f"octavo gateway: {error}\n")
        sys.exit(2)
    set_up_logs("gateway", config.log_level)
    _raise_file_limit()
    try:
        asyncio.run(_serve(config, folder, index))
    except ConfigError as error:
        report("failed", role="gateway", reason=str(error))
        sys.exit(2)


async def _serve(config: Config, folder: Path, index: int) -> None:
    stop = StopFlag()
    gateway = Gateway(config, folder, index)
    report("gateway", address=await gateway.start())
    await gateway.run(lambda: stop.is_set)
    await gateway.stop()


def _take_index(argv: Sequence[str]) -> tuple[int, list[str]]:
    """The value of --index, and the other arguments."""
    parser = argparse.ArgumentParser("octavo gateway", add_help=False, allow_abbrev=False)
    parser.add_argument("--index", type=int, default=0)
    given, rest = parser.parse_known_args(argv)
    return given.index, rest


def _folder(config: Config) -> Path:
    if config.runtime_dir is None:
        raise ConfigError("--runtime-dir is needed: the folder in which the services meet")
    folder = Path(config.runtime_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _raise_file_limit() -> None:
    """Every connection is a file, and the usual soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
