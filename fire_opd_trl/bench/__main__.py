"""`python -m fire_opd_trl.bench`."""

import sys

from .main import main


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
