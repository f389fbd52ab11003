"""The simulated SO-101 for gymnasium and LeRobot; a package, as `--env.discover_packages_path` wants one."""

from server.simulation.gym_so101.environment import MAX_STEPS, SO101PickConfig, SO101PickEnv

__all__ = ["MAX_STEPS", "SO101PickConfig", "SO101PickEnv"]
