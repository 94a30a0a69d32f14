"""What a run's steps need on hardware, from compiling them without it."""
