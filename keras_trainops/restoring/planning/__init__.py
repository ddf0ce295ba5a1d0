"""Plan a restore: check names, shapes and dtypes, and report what fits."""
