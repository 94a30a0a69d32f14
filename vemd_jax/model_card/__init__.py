"""Model card and data protection impact assessment of a run."""
