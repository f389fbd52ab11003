"""The doctor: what would go wrong at a site, found before its first round. One module a subject."""
