"""The comparison that shows what federated training reaches: `make study`."""
