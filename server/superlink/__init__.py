"""SuperLink as the operator's commands and the exporter reach it."""
