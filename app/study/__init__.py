"""Studies: grids of runs, and what their figures allow to say."""
