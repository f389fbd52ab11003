"""What runs around Flower at a site: its SuperNode, the consent check, its exporter."""
