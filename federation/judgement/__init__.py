"""Whether a dataset can be trained on: its files and tables, and samples read as training reads them."""
