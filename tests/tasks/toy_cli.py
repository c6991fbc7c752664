"""The console script with the toy task in its table; run as a file by tests that need a process."""

import sys

from tasks import cli, names

names.TASKS["toy"] = "toy_task"

if __name__ == "__main__":
    sys.exit(cli.main())
