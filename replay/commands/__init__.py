"""The commands of `agentdyno replay`, one module per file of verbs; each ends with its COMMANDS."""
