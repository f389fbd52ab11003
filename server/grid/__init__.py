"""Messages between the ServerApp and the nodes, over Flower's Grid."""
