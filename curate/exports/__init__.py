"""Formats that other tools read, one module each: a function from a trajectory to JSON values."""
