"""Loss terms and their weighted sum.

A term is a pure function `fn(outputs, batch, rng, **kwargs) -> Term`: one value
per example and a mask of the examples that it applies to. A recipe refers to it
by the name of a function here or by import path, `package.module:function`:

  config.losses.kl = {'fn': 'kl', 'weight': 1e-4, 'warmup_steps': 1000,
                      'kwargs': {'free_bits': 0.1}}

If the batch lacks the targets of a term (labels, annotations), the term is
masked out; if the model lacks its outputs (a decoder, a variance), an error is
raised at trace time. Terms are computed in float32.
"""

from vemd_jax.losses.emotion import (
    emotion_cross_entropy,
    emotion_sources,
    emotion_teacher_forcing,
    focal_emotion,
    multi_label_emotion,
    ordinal_emotion,
)
from vemd_jax.losses.heatmaps import (
    counted_pixels,
    heatmap_awing,
    heatmap_focal,
    heatmap_mse,
    heatmap_weighted_mse,
    pixel_mean,
)
from vemd_jax.losses.latent import KERNELS, kl, mmd, mmd_contributions
from vemd_jax.losses.queries import (
    OKS_SIGMAS,
    oks_keypoints,
    person_centers,
    person_query,
)
from vemd_jax.losses.term import Batch, Sums, Term, Weighted
from vemd_jax.losses.total import (
    SCHEDULES,
    TERMS,
    prepare,
    resolve,
    total,
    weight_at,
)

__all__ = [
    'KERNELS',
    'OKS_SIGMAS',
    'SCHEDULES',
    'TERMS',
    'Batch',
    'Sums',
    'Term',
    'Weighted',
    'counted_pixels',
    'emotion_cross_entropy',
    'emotion_sources',
    'emotion_teacher_forcing',
    'focal_emotion',
    'heatmap_awing',
    'heatmap_focal',
    'heatmap_mse',
    'heatmap_weighted_mse',
    'kl',
    'mmd',
    'mmd_contributions',
    'multi_label_emotion',
    'oks_keypoints',
    'ordinal_emotion',
    'person_centers',
    'person_query',
    'pixel_mean',
    'prepare',
    'resolve',
    'total',
    'weight_at',
]
