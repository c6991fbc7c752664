"""The console script with the toy problems in its table; run as a file by tests that need a process."""

import sys

from tasks.command import cli
from tasks.configuration import names

names.PROBLEMS |= {"toy": "toy:Toy", "shared": "toy:Shared"}

if __name__ == "__main__":
    sys.exit(cli.main())
