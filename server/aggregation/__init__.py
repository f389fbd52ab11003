"""From the replies of a round to the change of the global weights."""
