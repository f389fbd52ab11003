"""Errors a person can act on: one line that names the thing, the value and the fix."""

__all__ = ["ConfigError", "DatasetError", "FederationError", "PolicyError", "WireError"]


class FederationError(Exception):
    """Base of every error this project raises on purpose. Its message is one line, fit to show as it is."""


class ConfigError(FederationError):
    """A run configuration names an unknown key or a value out of range."""


class DatasetError(FederationError):
    """A data set is missing, incomplete or does not fit the federation."""


class PolicyError(FederationError):
    """A policy cannot be built, or its weights do not fit the configured model."""


class WireError(FederationError):
    """A message from another party is malformed, tampered with or numerically unusable."""
