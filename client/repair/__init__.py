"""`make repair`: a new dataset out of the whole episodes of a damaged one."""
