"""`python -m octavo.services.executor`: the executor process; takes the flags of `octavo serve`."""

import sys

from octavo.services.executor.service import serve
from octavo.shared.process import run_service

if __name__ == "__main__":
    run_service("executor", serve, sys.argv[1:])
