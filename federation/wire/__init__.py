"""How tensors travel between server and sites."""
