"""The state of a run: variables, the position in the data, random generators, and their records."""
