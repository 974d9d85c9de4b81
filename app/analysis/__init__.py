"""What can be read out of runs and networks after the fact."""
