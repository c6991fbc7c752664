"""Everything that a GPU must show, in parts of some minutes that can be stopped and gone on with."""
