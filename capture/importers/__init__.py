"""Readers of recordings that other tools made, into the same `Trajectory`."""
