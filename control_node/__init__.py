"""What runs on the control node: the report of a run, maintenance windows, the digest of a plan."""
