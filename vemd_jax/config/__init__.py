"""The config of a run: defaults, options, checks.

A recipe is a file with `get_config(options='')` that starts from `default()`,
sets fields and ends with `finish(config, options)`. Only programs and recipes
import this package; other modules receive the values that they need.
"""

from vemd_jax.config.checks import MODES, active_losses, check, datasets
from vemd_jax.config.command_line import parse_flags
from vemd_jax.config.defaults import (
    LABELLED,
    default,
    for_dataset,
    loss,
    metric,
)
from vemd_jax.config.files import check_same, load, save
from vemd_jax.config.options import (
    DECODERS,
    VARIANTS,
    finish,
    laptop,
    reference,
)

__all__ = [
    'DECODERS',
    'LABELLED',
    'MODES',
    'VARIANTS',
    'active_losses',
    'check',
    'check_same',
    'datasets',
    'default',
    'finish',
    'for_dataset',
    'laptop',
    'load',
    'loss',
    'metric',
    'parse_flags',
    'reference',
    'save',
]
