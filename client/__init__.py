"""The SuperNode's side: a Flower ClientApp that trains SmolVLA next to one site's data."""
