"""Readers of the official layouts, one module per dataset."""
