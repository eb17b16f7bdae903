"""Turn trajectories into a dataset worth publishing: select, redact, count, describe, export."""
