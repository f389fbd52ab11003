"""How many sites one SuperLink and one ServerApp carry."""
