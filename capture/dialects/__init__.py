"""One module per wire protocol: request and response values in, `Prompt` and `Answer` out; no I/O."""
