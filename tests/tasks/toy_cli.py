"""The console script with the toy problems in its table; run as a file by tests that need a process."""

import os
import sys

from tasks import cli, names, pace

names.PROBLEMS |= {"toy": "toy:Toy", "shared": "toy:Shared"}
pace.EVERY = float(os.environ.get("SECONDS_OF_PACE", pace.EVERY))

if __name__ == "__main__":
    sys.exit(cli.main())
