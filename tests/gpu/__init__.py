"""Everything that only a GPU can prove, as one command of a few minutes: `python -m tests.gpu.check`."""
