"""VE-MD in JAX: the mood of a group, and nobody's in particular.

Letters used for dimensions everywhere:

  B batch          T frames           H W image height, width
  P people         K joints           h w heatmap or latent height, width
  L limbs          Q queries          D latent channels
  C classes        S decoder stages   E embedding channels
"""

__version__ = '0.1.0'
