"""Names of files, labels and classes: how they are compared and sorted."""

import posixpath
import re
import unicodedata
from collections.abc import Sequence

from vemd_jax.data import datasets, video

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff',
    '.jp2', '.ppm', '.pgm',
)  # fmt: skip


def file_key(name: str) -> str:
  """Key for comparing file names: normalised Unicode form and separators."""
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  return posixpath.normpath(name)


def label_key(label: str) -> str:
  """Comparison key of a label: ignores case, white space, number formats."""
  return datasets.canonical_number(label) or ''.join(label.casefold().split())


def natural_key(name: str) -> tuple:
  """Sort key that orders the numbers in names by value."""
  parts = re.split(r'([0-9]+)', name.casefold())
  for i in range(1, len(parts), 2):
    digits = parts[i].lstrip('0')
    # Digits are compared as text: int() accepts 4,300 digits at most.
    parts[i] = (len(digits), digits)
  return parts, name


def is_image(name: str) -> bool:
  """Whether a file is an image, by its name."""
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def is_video(name: str) -> bool:
  """Whether a file is a video, by its name."""
  return name.lower().endswith(video.SUFFIXES)


def some(names: Sequence[str], most: int = 5) -> str:
  """The first names of a list, and the number of the others."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
