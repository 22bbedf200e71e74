"""`python -m octavo.services.llm.host PARENT [settings]`: `octavo serve` for one program, which it does not outlive."""

import signal
import sys

from octavo.services.launch import serve
from octavo.shared.config import parse
from octavo.shared.errors import OctavoError
from octavo.shared.process import die_with_parent, report


def main() -> int:
    parent, *flags = sys.argv[1:]
    # To be told to end, not killed: then the folder of the sockets goes too.
    die_with_parent(int(parent), signal.SIGTERM)
    try:
        return serve(parse(flags, "octavo", ""), is_embedded=True)
    except OctavoError as error:
        report("failed", reason=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
