"""A policy for this site's own arm: the delivered one, tuned on this site's own recordings."""
