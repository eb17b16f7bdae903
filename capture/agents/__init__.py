"""Coding agents: how each is recognised, where its calls would go, and how it is told to go through a recorder."""
