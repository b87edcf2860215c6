"""The fault matrix: what may happen to a host in the middle of a run, and what is left afterwards."""
