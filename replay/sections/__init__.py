"""The sections of a report, one module per part; each is a function from the run's files to sentences and tables."""
