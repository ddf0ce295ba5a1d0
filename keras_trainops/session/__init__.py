"""Training runs on a log directory: checkpoints, resumption, summaries and a readable log."""
