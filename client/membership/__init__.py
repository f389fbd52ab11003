"""A site's membership of a federation: its key, invitation, settings, and the SuperNode that joins."""
