"""The operator's side: the ServerApp, what it records, and the tools that start and submit a run."""
