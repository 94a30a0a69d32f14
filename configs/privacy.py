r"""The price of privacy: what a bottleneck and DP-SGD cost, and what they hide.

  python -m vemd_jax.sweep configs/privacy.py --workdir=SWEEP \
      --paths faces=FACES
  for run in SWEEP/*/*/seed_*; do vemd audit $run --inversion_steps=0; done
  python -m vemd_jax.table SWEEP

FACES has single faces with a column `subject` in labels.csv, in the layout of
configs/folder.py. The table has the accuracy of each run, what its latent tells
about emotion and identity as `vemd audit` measures it, and epsilon
(`pip install -e ".[audit,dp]"`). A run takes 2 to 5 minutes on a CPU core, with
DP-SGD up to 14.

In the first group the narrowness of the latent changes, in the second the noise
of DP-SGD; the first row of each is the baseline.
"""

from vemd_jax.sweep_plan import Row, Sweep

# Latent width and weight of the KL term; the recipe has (64, 1e-4).
POINTS = ((64, 1e-4), (64, 1e-2), (64, 1e-1), (16, 1e-4), (4, 1e-4), (4, 1e-2))
# Noise of DP-SGD, per clipping norm; 0 is training without privacy.
NOISES = (0.0, 0.5, 1.0, 2.0)
# Small images, so that many runs are possible.
FACES = {
    'data.root': '{faces}',
    'data.grayscale': True,
    'data.image_size': 64,
    'model.parts': ('face',),
}

SWEEP = Sweep(
    rows=(
        *(
            Row(
                'bottleneck',
                f'width {width}, KL {weight:g}',
                'folder.py:ve_md',
                {
                    **FACES,
                    'steps': 600,
                    'model.latent.dim': width,
                    'losses.kl.weight': weight,
                },
            )
            for width, weight in POINTS
        ),
        *(
            Row(
                'DP-SGD',
                f'noise {noise:g}',
                'folder.py:ve_sd,dp',
                {
                    **FACES,
                    'steps': 400,
                    'batch_size': 64,
                    'dp.noise': noise,
                    # The fastest on a CPU.
                    'dp.microbatch': 1,
                    'dp.delta': 1e-4,
                },
            )
            for noise in NOISES
        ),
    ),
    metrics=(
        'accuracy',
        'macro_f1',
        'audit/latent/emotion/balanced accuracy',
        'audit/latent/closed set/rank-1 accuracy',
        'audit/latent/verification/equal error rate',
        'audit/exported/verification/equal error rate',
        'audit/logits/threshold/area under ROC',
        'privacy/epsilon',
    ),
    seeds=3,
)
