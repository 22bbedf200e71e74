"""`python -m octavo.services.scheduler`: the scheduler process; takes the flags of `octavo serve`."""

import sys

from octavo.services.scheduler.service import serve
from octavo.shared.process import run_service

if __name__ == "__main__":
    run_service("scheduler", serve, sys.argv[1:])
