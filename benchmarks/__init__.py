"""One script for each published table or figure, and the speed comparisons."""
