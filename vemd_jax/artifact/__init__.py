"""Export of a trained run as a file that runs without this package."""
