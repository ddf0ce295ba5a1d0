"""The log directory on disk: crash-safe checkpoints, the writing thread, the lock."""
