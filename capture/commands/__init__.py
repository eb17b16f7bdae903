"""One module per family of `agentdyno capture` commands; each is thin over functions one can call."""
