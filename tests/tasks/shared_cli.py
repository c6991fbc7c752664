"""The console script with the task with queries in its table; run as a file by tests that need processes."""

import os
import sys

from tasks import cli, names, pace

names.TASKS["shared"] = "shared_task"
pace.EVERY = float(os.environ.get("SECONDS_OF_PACE", pace.EVERY))

if __name__ == "__main__":
    sys.exit(cli.main())
