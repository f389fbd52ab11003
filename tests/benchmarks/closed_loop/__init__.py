"""Does the federated policy pick up the cube? `python -m tests.benchmarks.closed_loop`."""
