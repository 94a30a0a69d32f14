"""Retries, paths inside a folder, arrays without pickles."""

import ast
import errno
import io
import os
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from vemd_jax.data import files, folder, video
from vemd_jax.prepare import rows

_PACKAGE = pathlib.Path(files.__file__).parents[1]


class Flaky:
  """Fails some times, then returns what a function does."""

  def __init__(self, function, failures):
    self.function, self.failures, self.calls = function, list(failures), 0

  def __call__(self, *args, **kwargs):
    self.calls += 1
    if self.failures:
      number = self.failures.pop(0)
      raise OSError(number, os.strerror(number))
    return self.function(*args, **kwargs)


@pytest.fixture
def waited(monkeypatch):
  """Seconds that were waited, without waiting them."""
  seconds = []
  monkeypatch.setattr(files.retry, '__kwdefaults__', {'sleep': seconds.append})
  return seconds


def test_transient_errors_are_retried_with_longer_pauses(waited):
  read = Flaky(lambda path: path, [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
  assert files.retry(read, 'x') == 'x' and read.calls == 4
  assert waited == list(files.DELAYS[:3]) and waited == sorted(waited)
  read = Flaky(lambda path: path, [errno.EIO] * 20)
  waited.clear()
  with pytest.raises(OSError) as caught:
    files.retry(read, 'x')
  assert caught.value.errno == errno.EIO
  assert 10 < sum(waited) < 30 and read.calls == len(files.DELAYS) + 1


@pytest.mark.parametrize(
    'number', [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG]
)
def test_other_errors_are_not_retried(waited, number):
  read = Flaky(lambda path: path, [number])
  with pytest.raises(OSError):
    files.retry(read, 'x')
  assert read.calls == 1 and not waited


def test_a_reader_goes_on_after_a_stale_handle(tmp_path, waited, monkeypatch):
  content = bytes(range(256)) * 50
  (tmp_path / 'a').write_bytes(content)
  with files.open_binary(tmp_path / 'a') as file:
    assert file.read(5) == content[:5]
    file.seek(9000)
    monkeypatch.setattr(
        os, 'pread', Flaky(os.pread, [errno.ESTALE, errno.EIO])
    )
    assert file.read() == content[9000:]
    assert len(waited) == 2
    assert file.seek(-3, os.SEEK_END) == len(content) - 3
    assert file.read() == content[-3:]


def test_a_network_that_fails_for_seconds_loses_no_sample(
    tmp_path, waited, monkeypatch
):
  lines = ['file,split,label']
  for i in range(4):
    image = np.full((8, 8, 3), i, np.uint8)
    cv2.imwrite(str(tmp_path / f'{i}.png'), image)
    lines.append(f'{i}.png,train,x')
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  stat = Flaky(os.stat, [errno.EIO, errno.ESTALE])
  monkeypatch.setattr(os, 'stat', stat)
  source = folder.Folder(tmp_path, 'train')
  assert len(source) == 4 and len(waited) == 2
  read = Flaky(files._read, [errno.ETIMEDOUT] * 3)
  monkeypatch.setattr(files, '_read', read)
  contents = [source[i]['frames'][0] for i in range(4)]
  assert contents == [
      (tmp_path / f'{i}.png').read_bytes() for i in range(4)
  ]
  # A failure that persists leaves the sample out; it does not end the run.
  monkeypatch.setattr(files, '_read', Flaky(files._read, [errno.EIO] * 99))
  assert source[0]['frames'] == [b'']


def test_a_video_on_such_a_network(tmp_path, waited, monkeypatch):
  path = tmp_path / 'a.avi'
  code = cv2.VideoWriter_fourcc(*'MJPG')
  out = cv2.VideoWriter(str(path), code, 10, (32, 16))
  for i in range(6):
    out.write(np.full((16, 32, 3), 40 * i, np.uint8))
  out.release()
  expected = video.read_frames(str(path), 3)
  monkeypatch.setattr(
      os, 'pread', Flaky(os.pread, [errno.EIO, errno.ESTALE, errno.EIO])
  )
  clip = video.read_frames(str(path), 3)
  np.testing.assert_array_equal(clip.frames, expected.frames)
  assert len(waited) == 3
  monkeypatch.setattr(os, 'pread', Flaky(os.pread, [errno.EIO] * 99))
  with pytest.raises(ValueError, match=r'a\.avi: cannot be'):
    video.read_frames(str(path), 3)


def test_a_pipe_does_not_wait(tmp_path):
  os.mkfifo(tmp_path / 'a.jpg')
  assert files.read_bytes(tmp_path / 'a.jpg') == b''


# --- paths ------------------------------------------------------------------


def _escapes(tmp_path):
  """Names that lead out of DIR, and what they would read."""
  root, other = tmp_path / 'data', tmp_path / 'private'
  for path in (root, root / 'clip', other, other / 'clip'):
    path.mkdir()
  for path in (other / 'x.jpg', other / 'clip' / '1.jpg', root / 'clip/1.jpg',
               root / 'a.jpg'):  # fmt: skip
    path.write_bytes(b'image')
  (root / 'link.jpg').symlink_to(other / 'x.jpg')
  (root / 'folder').symlink_to(other)
  (root / 'clip link').symlink_to(other / 'clip')
  return root, other


@pytest.mark.parametrize('name', [
    '../private/x.jpg', 'clip/../../private/x.jpg', '{other}/x.jpg',
    'link.jpg', 'folder/x.jpg', 'clip link', '..\\private\\x.jpg',
    './../private/clip', 'folder/../x.jpg',
])  # fmt: skip
def test_no_name_leads_out_of_the_folder(tmp_path, name):
  root, other = _escapes(tmp_path)
  (tmp_path / 'x.jpg').write_bytes(b'image')
  name = name.format(other=other)
  (root / 'labels.csv').write_text(
      f'file,split,label\na.jpg,train,x\n{name},train,x\n'
  )
  with pytest.raises(ValueError, match=r'labels\.csv:3: .* is outside .*'
                     r'config\.data\.outside_root=True'):  # fmt: skip
    folder.Folder(root, 'train')
  source = folder.Folder(root, 'train', outside_root=True)
  assert source[1]['frames'] == [b'image']
  with pytest.raises(ValueError, match='is outside'):
    rows.Rows(root)
  assert len(rows.Rows(root, outside_root=True)) == 2


def test_a_sound_file_does_not_either(tmp_path):
  root, _ = _escapes(tmp_path)
  (root / 'labels.csv').write_text(
      'file,split,label,audio\na.jpg,train,x,../private/x.wav\n'
  )
  with pytest.raises(ValueError, match=r'csv:2: \.\./private/x\.wav is out'):
    folder.Folder(root, 'train')


def test_names_that_stay_inside_are_read(tmp_path):
  root, _ = _escapes(tmp_path)
  (root / 'near.jpg').symlink_to('clip/1.jpg')
  (root / 'labels.csv').write_text(
      'file,split,label\nclip/../a.jpg,train,x\nnear.jpg,train,x\n'
      f'{root}/clip/1.jpg,train,x\n'
  )
  assert len(folder.Folder(root, 'train')) == 3


def test_a_frame_that_is_a_link_to_outside_is_left_out(tmp_path):
  root, other = _escapes(tmp_path)
  (root / 'clip' / '2.jpg').symlink_to(other / 'x.jpg')
  (root / 'labels.csv').write_text('file,split,label\nclip,train,x\n')
  assert len(folder.Folder(root, 'train')[0]['frames']) == 1
  source = folder.Folder(root, 'train', outside_root=True)
  assert len(source[0]['frames']) == 2


# --- arrays, pickles --------------------------------------------------------


def test_arrays_never_unpickle(tmp_path):
  np.savez(tmp_path / 'a.npz', features=np.array([{'a': 1}], object))
  np.save(tmp_path / 'a.npy', np.array([{'a': 1}], object))
  for name in ('a.npz', 'a.npy'):
    with pytest.raises(ValueError, match=rf'{name}: cannot be read as arrays '
                       r'\(ValueError: Object arrays'):  # fmt: skip
      files.load_arrays(tmp_path / name)


def test_arrays_that_are_compressed_bombs(tmp_path, monkeypatch):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      header, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 24, 1)}
  )
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('features.npy', header.getvalue() + bytes(1 << 26))
  assert (tmp_path / 'a.npz').stat().st_size < 1 << 18
  assert files.load_arrays(tmp_path / 'a.npz')['features'].shape[0] == 1 << 24
  monkeypatch.setattr(files, 'MAX_ARRAY_BYTES', 1 << 20)
  with pytest.raises(ValueError, match=r'67108\d+ bytes, compressed to'):
    files.load_arrays(tmp_path / 'a.npz')


def test_no_module_unpickles_what_it_reads():
  for path in _PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      where = f'{path.name}:{getattr(node, "lineno", 0)}'
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = [a.name for a in node.names] + [getattr(node, 'module', '')]
        modules = {(n or '').split('.')[0] for n in names}
        assert not modules & {'pickle', 'cloudpickle', 'dill', 'joblib',
                              'shelve', 'marshal'}, where  # fmt: skip
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        given = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
        called = ast.unparse(node.func)
        if called in ('np.load', 'numpy.load'):
          assert given.get('allow_pickle') is False, where
        if called == 'torch.load':
          assert given.get('weights_only') is True, where
        assert called not in ('yaml.load', 'eval', 'exec'), where
