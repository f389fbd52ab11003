"""The federation's own certificate authority, and the keys of SuperLink and SuperNodes."""
