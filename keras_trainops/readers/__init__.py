"""Checkpoint readers: one file per format behind `readers.base.Checkpoint`."""
