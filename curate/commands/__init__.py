"""The curate commands, grouped by what they do."""
