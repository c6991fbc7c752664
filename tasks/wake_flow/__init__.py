"""Wake flow: a network corrects a coarse solver in the loop, with and without the solver's derivative."""
