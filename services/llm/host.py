"""`python -m octavo.services.llm.host PARENT [settings]`: `octavo serve` for one program, which it does not outlive."""

import ctypes
import os
import signal
import sys

from octavo.services.launch import PR_SET_PDEATHSIG, serve
from octavo.shared.config import parse
from octavo.shared.errors import OctavoError
from octavo.shared.process import report


def main() -> int:
    parent, *flags = sys.argv[1:]
    # To be told to end, not killed: then the folder of the sockets goes too.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1  # it died before we asked
    try:
        return serve(parse(flags, "octavo", ""), is_embedded=True)
    except OctavoError as error:
        report("failed", reason=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
