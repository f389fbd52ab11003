"""LeRobot datasets: what one says of itself, what is wrong with it, and how training reads it."""
