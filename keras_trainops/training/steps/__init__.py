"""One training step: what it is given, how it runs, and the check of it on shapes alone."""
