"""What the server and every SuperNode must agree on: configuration, policy, dataset, wire format.

`server` and `client` import this package and never each other; this package imports neither.
"""
