"""The report of a run, or of several runs, as one self-contained HTML file."""

from vemd_jax.report.document import NAME, write

__all__ = ['NAME', 'write']
