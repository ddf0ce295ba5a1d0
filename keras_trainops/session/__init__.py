"""A training run on a log directory: checkpoints, resumption, summaries, one readable log."""
