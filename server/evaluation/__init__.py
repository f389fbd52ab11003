"""How good a policy is: its loss on held-out data, its success in closed loop."""
