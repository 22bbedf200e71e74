"""`python -m octavo.services.tokenizer`: the tokenizer process; takes the flags of `octavo serve`."""

import sys

from octavo.services.tokenizer.service import serve
from octavo.shared.process import run_service

if __name__ == "__main__":
    run_service("tokenizer", serve, sys.argv[1:])
