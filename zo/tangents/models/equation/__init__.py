"""The shelf of equations: of states on periodic grids, a differential equation of few terms."""
