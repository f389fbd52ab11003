"""A site's recordings: how their owner names them, where they are, and what they hold together."""
