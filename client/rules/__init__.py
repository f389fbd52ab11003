"""The owner's rules: what no run may ask of this site, in one file that the owner writes."""
