"""The whole path on one machine: a built-in agent, a scripted model, a real engine, a score."""
