r"""The price of privacy: utility against identity in the latent, and epsilon.

  python -m vemd_jax.sweep configs/privacy.py --seeds=3 --workdir=SWEEP \
      --paths faces=FACES
  python -m vemd_jax.table SWEEP
  vemd audit SWEEP/runs/ROW/seed_0 --inversion_steps=0

FACES has single faces with a column `subject` in labels.csv, in the layout of
configs/folder.py. The table has the utility; for the first group, `vemd audit`
of each run has the identity at each tap; for the second, `privacy.epsilon` is
in each results.json (`pip install -e ".[audit,dp]"`).

This sweep has not been run: there is no measured curve.
"""

from vemd_jax.sweep_plan import Row, Sweep

# Latent width and weight of the KL term; the first row is the default.
POINTS = ((64, 1e-4), (64, 1e-2), (64, 1e-1), (16, 1e-4), (4, 1e-4), (4, 1e-2))
# Noise of DP-SGD, per clipping norm; 0 is training without privacy.
NOISES = (0.0, 0.5, 1.0, 2.0)
FACES = {
    'data.root': '{faces}',
    'data.grayscale': True,
    'model.parts': ('face',),
    'steps': 3000,
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
                    'batch_size': 128,
                    'dp.noise': noise,
                    'dp.delta': 1e-4,
                },
            )
            for noise in NOISES
        ),
    ),
    metrics=('accuracy', 'macro_f1'),
    seeds=3,
)
