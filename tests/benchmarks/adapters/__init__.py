"""What an adapter costs and reaches beside the whole policy: `python -m tests.benchmarks.adapters`."""
