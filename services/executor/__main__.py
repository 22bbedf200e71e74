"""`python -m octavo.services.executor`: the executor process; takes the flags of `octavo serve`."""

import logging
import os
import sys

from octavo.services.executor.service import serve
from octavo.shared.process import run_service

if __name__ == "__main__":
    try:
        run_service("executor", serve, sys.argv[1:])
    except SystemExit as end:
        # Python's own end frees memory by way of the device: of one that has failed, that aborts the process instead.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(int(end.code or 0))
