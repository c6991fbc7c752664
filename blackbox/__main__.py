"""`python -m blackbox`: what the console script `blackbox` does."""

import sys

from blackbox_coupling import main

sys.exit(main())
