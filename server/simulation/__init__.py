"""A simulated SO-101 that picks up a cube: demonstrations and closed-loop evaluation without an arm."""
