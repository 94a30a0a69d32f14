"""One module a dataset: how its official files are laid out."""
