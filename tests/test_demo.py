"""The web page of `vemd demo`, with the model of test_predict."""

import base64
import contextlib
import io
import json
import re
import shutil
import socket
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.test_predict import fake_model, json_lines, run, save_video
from vemd_jax import demo, inference
from vemd_jax.data import decoding

uvicorn = pytest.importorskip('uvicorn')
pytest.importorskip('starlette')

from vemd_jax.web import faces
from vemd_jax.web.app import make_app
from vemd_jax.web.judge import Judge, Refused


@contextlib.contextmanager
def serving(app):
  """Serves an application on a free port of this machine; gives its address."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    config = uvicorn.Config(app, log_level='error')
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def tell(*args, **kwargs):
      await startup(*args, **kwargs)
      started.set()

    server.startup = tell
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert started.wait(60)
    try:
      yield f'http://127.0.0.1:{listener.getsockname()[1]}'
    finally:
      server.should_exit = True
      thread.join(60)


ABOUT = {'model': 'RUN', 'step': 3, 'classes': ['dark', 'bright'],
         'decodes': True, 'max_megabytes': 1, 'max_seconds': 4}  # fmt: skip


@pytest.fixture(scope='module')
def address():
  judge = Judge(fake_model(), max_pixels=1_000_000, max_seconds=4)
  with serving(make_app(judge, ABOUT, max_bytes=1_000_000)) as where:
    yield where


def send(url, data=None, kind='application/octet-stream', **headers):
  """(status, answer) of a request."""
  headers = {k.replace('_', '-'): v for k, v in headers.items()}
  if data is not None:
    headers['Content-Type'] = kind
  request = urllib.request.Request(url, data=data, headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=60) as response:
      return response.status, json.loads(response.read())
  except urllib.error.HTTPError as error:
    with error:
      body = error.read()
    with contextlib.suppress(ValueError):
      return error.code, json.loads(body)
    return error.code, body.decode()


def encoded(image, suffix='.png'):
  return cv2.imencode(suffix, image)[1].tobytes()


def grey(value, size=(40, 60)):
  return np.full((*size, 3), value, np.uint8)


def shown(answer):
  """The pictures of an answer as arrays."""
  head = 'data:image/jpeg;base64,'
  for one in answer['pictures']:
    assert one['image'].startswith(head)
    yield decoding.decode_image(base64.b64decode(one['image'][len(head) :]))


def test_health_and_page(address):
  assert send(f'{address}/health') == (200, {'status': 'ok', **ABOUT})
  for path, part in ('/', '<!doctype html>'), ('/page.js', 'fetch('), (
      '/page.css', 'article'):  # fmt: skip
    with urllib.request.urlopen(address + path, timeout=60) as response:
      text = response.read().decode()
      policy = response.headers['Content-Security-Policy']
    assert part in text and "default-src 'none'" in policy
    # Nothing of another site.
    others = set(re.findall(r'https?://[^\s"\')]+', text))
    assert others <= {'http://www.w3.org/2000/svg'}


def test_a_photograph(address):
  status, answer = send(f'{address}/predict', encoded(grey(204)), 'image/png')
  assert status == 200
  assert answer['label'] == 'bright' and answer['pictures'] == []
  assert answer['probabilities']['bright'] == pytest.approx(0.8, abs=1e-3)
  assert 'timeline' not in answer and not answer['cut']


@pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.mkv'])
def test_a_video_is_told_as_predict_tells_it(
    address, tmp_path, capsys, suffix
):
  path = tmp_path / f'v{suffix}'
  save_video(path, [30] * 20 + [220] * 10)
  assert run(path, '--json') == 0
  (expected,) = json_lines(capsys)
  status, answer = send(f'{address}/predict', path.read_bytes())
  assert status == 200 and answer['timeline'] == expected['timeline']
  assert answer['probabilities'] == expected['probabilities']


def test_a_long_video_is_cut_and_a_clip_model_sees_clips(tmp_path):
  path = tmp_path / 'v.mp4'
  save_video(path, [20 * s for s in range(12) for _ in range(10)])
  judge = Judge(fake_model(frames=2), max_seconds=4, window=2.0)
  answer = judge(path.read_bytes(), heatmap=True)
  assert [m['seconds'] for m in answer['timeline']] == [1, 2, 3, 4]
  assert answer['cut']
  assert [p['seconds'] for p in answer['pictures']] == [1, 2, 3, 4]
  save_video(path, [100] * 3)
  (moment,) = judge(path.read_bytes())['timeline']
  assert moment['probabilities']['bright'] == pytest.approx(0.39, abs=0.02)


BROKEN = {
    'text': (b'no picture', 415),
    'empty': (b'', 415),
    'torn': (encoded(np.random.default_rng(0).integers(
        0, 255, (50, 50, 3), np.uint8))[:2000], 415),
    'torn video': (b'\0\0\0\x20ftypisom' + bytes(300), 415),
    'playlist': (b'#EXTM3U\n#EXTINF:1\nfile:///etc/hostname\n', 415),
    'large': (bytes(1_000_001), 413),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_what_cannot_be_used_is_one_line(address, name):
  data, expected = BROKEN[name]
  status, answer = send(f'{address}/predict', data)
  assert status == expected, answer
  assert '\n' not in answer['error'] and len(answer['error']) > 10


def test_too_many_pixels_are_refused_unseen(address):
  for side in 1001, 14_000:
    # A small file: the header alone tells the size.
    data = io.BytesIO()
    Image.new('1', (side, side)).save(data, 'png')
    status, answer = send(f'{address}/predict', data.getvalue())
    assert status == 413 and 'pixels' in answer['error']


def test_other_sites_are_kept_out(address):
  data = encoded(grey(0))
  assert send(f'{address}/predict', data, 'text/plain')[0] == 415
  kind = 'multipart/form-data; boundary=x'
  assert send(f'{address}/predict', data, kind)[0] == 415
  assert send(f'{address}/predict', data, Host='evil.example')[0] == 400
  assert send(f'{address}/predict')[0] == 405
  assert send(f'{address}/../demo.py')[0] == 404


def test_several_at_once_and_the_rest_are_turned_away():
  together = threading.Barrier(3)

  def judge(data, heatmap, blur):
    together.wait(60)
    return {'size': len(data)}

  answers = []
  with serving(make_app(judge, {}, max_waiting=2)) as address:
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(
                send(f'{address}/predict', bytes(n))
            )
        )
        for n in (1, 2)
    ]
    for thread in threads:
      thread.start()
    while together.n_waiting < 2:
      threads[0].join(0.01)
    # Two are in hand; the page still answers, a third file does not fit.
    assert send(f'{address}/health')[0] == 200
    status, answer = send(f'{address}/predict', b'x')
    assert status == 503 and 'busy' in answer['error']
    together.wait(60)
    for thread in threads:
      thread.join(60)
  assert sorted(a['size'] for _, a in answers) == [1, 2]


def test_refused_requests_make_room_for_others():
  def judge(data, heatmap, blur):
    raise Refused(415, 'not this one')

  with serving(make_app(judge, {}, max_waiting=1)) as address:
    for _ in range(3):
      assert send(f'{address}/predict', b'x')[0] == 415


def test_the_heatmap_lies_where_the_model_sees_it(address):
  image = grey(90, (120, 200))
  image[60:90, 25:100] = 0, 0, 255  # BGR: a red box.
  status, answer = send(f'{address}/predict?heatmap=1', encoded(image))
  (picture,) = shown(answer)
  assert status == 200 and picture.shape == image.shape
  changed = np.abs(picture.astype(int) - image[..., ::-1]).max(-1) > 40
  assert changed[65:85, 32:90].mean() > 0.95 and changed[:45].mean() < 0.01
  judge = Judge(fake_model(decodes=False))
  with serving(make_app(judge, ABOUT)) as other:
    status, answer = send(f'{other}/predict?heatmap=1', encoded(image))
  assert status == 400 and 'decodes no structure' in answer['error']


def test_faces_are_hidden(address, monkeypatch):
  noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
  boxes = np.array([[100, 80, 140, 120], [280, 180, 330, 230]])
  monkeypatch.setattr(faces, 'detect', lambda image: boxes)
  hidden, count = faces.hide(noise)
  assert count == 2
  same = (hidden == noise).all(-1)
  # A quarter around a face, and what is beyond is as it was.
  assert same[80:120, 100:140].mean() < 0.01
  assert same[68:132, 92:148].mean() < 0.01
  assert same[:60].all() and same[:, :85].all() and same[:160, 155:].all()
  assert len(np.unique(hidden[66:134, 90:150].reshape(-1, 3), axis=0)) <= 30
  data = encoded(noise)
  (picture,) = shown(send(f'{address}/predict?blur=1', data)[1])
  assert picture[80:120, 100:140].std() < 0.5 * noise[80:120, 100:140].std()
  monkeypatch.setattr(faces, 'detect', lambda image: boxes[:0])
  hidden, count = faces.hide(noise)
  assert count == 'all'
  assert len(np.unique(hidden.reshape(-1, 3), axis=0)) <= 14 * 14
  _, answer = send(f'{address}/predict?blur=1', data)
  assert answer['pictures'][0]['hidden'] == 'all'


def test_the_detector_runs():
  pytest.importorskip('dlib')
  assert faces.detect(grey(128)).shape == (0, 4)


def test_the_command_serves_and_says_where(tmp_path, monkeypatch, capsys):
  ran = {}

  def serve(self, sockets):
    ran['app'], ran['at'] = self.config.app, sockets[0].getsockname()
    sockets[0].close()

  monkeypatch.setattr(uvicorn.Server, 'run', serve)
  argv = [str(tmp_path / 'RUN'), '--port=0', '--max_megabytes=3']
  assert demo.main(argv, load=lambda w, d: fake_model()) == 0
  assert ran['at'][0] == '127.0.0.1'
  printed = capsys.readouterr()
  assert f'http://127.0.0.1:{ran["at"][1]}' in printed.out
  assert printed.err == ''
  argv = [str(tmp_path / 'RUN'), '--port=0', '--host=0.0.0.0']
  assert demo.main(argv, load=lambda w, d: fake_model()) == 0
  assert 'no password' in capsys.readouterr().err


def test_the_command_ends_in_one_line(tmp_path, capsys):
  assert demo.main([str(tmp_path / 'none'), '--port=0']) == 2
  assert str(tmp_path / 'none') in capsys.readouterr().err
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    argv = [str(tmp_path), f'--port={port}']
    assert demo.main(argv, load=inference.load) == 2
  error = capsys.readouterr().err
  assert f'--port={port}' in error and error.count('\n') == 1


# ------------------------------------------------------------- in a browser


@pytest.fixture(scope='module')
def browser():
  webdriver = pytest.importorskip('selenium.webdriver')
  chromium = shutil.which('chromium') or shutil.which('chromium-browser')
  driver = shutil.which('chromedriver')
  if not (chromium and driver):
    pytest.skip('no chromium with chromedriver here')
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for argument in (
      'headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage',
      'window-size=1000,1400', 'use-fake-ui-for-media-stream',
      'use-fake-device-for-media-stream',
  ):  # fmt: skip
    options.add_argument(f'--{argument}')
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(driver)
  chrome = webdriver.Chrome(options=options, service=service)
  yield chrome
  chrome.quit()


def find(where, selector):
  return where.find_elements('css selector', selector)


def wait(browser, condition):
  from selenium.webdriver.support.ui import WebDriverWait

  return WebDriverWait(browser, 60).until(lambda _: condition())


def told(browser, path):
  """Gives a file to the page; returns the card when it is answered."""
  before = len(find(browser, 'article'))
  find(browser, '#files')[0].send_keys(str(path))
  wait(browser, lambda: len(find(browser, 'article')) > before)
  card = find(browser, 'article')[0]
  state = find(card, '.state')[0]
  wait(browser, lambda: state.text not in ('', 'predicting …'))
  return card


def bars(card):
  return dict(bar.text.split('\n') for bar in find(card, '.bar'))


def test_in_chromium(address, browser, tmp_path):
  browser.get(address)
  wait(browser, lambda: 'RUN, step 3' in find(browser, '#model')[0].text)
  meaning = find(browser, '#meaning')[0].text
  assert 'does not measure what anybody feels' in meaning

  image = grey(90, (120, 200))
  image[60:90, 25:100] = 0, 0, 255
  cv2.imwrite(str(tmp_path / 'group.png'), image)
  card = told(browser, tmp_path / 'group.png')
  bright = 100 * image.mean() / 255
  assert bars(card) == {
      'dark': f'{100 - bright:.0f} %', 'bright': f'{bright:.0f} %'
  }  # fmt: skip
  assert find(card, 'h2')[0].text == 'group.png'
  assert find(card, '.shown img')[0].get_attribute('src').startswith('blob:')
  find(card, '.heat')[0].click()
  wait(browser, lambda: find(card, '.shown figure img'))
  src = find(card, '.shown img')[0].get_attribute('src')
  assert src.startswith('data:image/jpeg')

  save_video(tmp_path / 'v.mp4', [30] * 20 + [220] * 10)
  card = told(browser, tmp_path / 'v.mp4')
  lines = find(card, '.course polyline')
  assert len(lines) == 2
  points = [line.get_attribute('points').split() for line in lines]
  heights = np.array([[float(p.split(',')[1]) for p in q] for q in points])
  # Three moments; bright rises, dark falls, and they mirror each other.
  assert heights.shape == (2, 3) and heights[1, 2] < heights[1, 0]
  np.testing.assert_allclose(heights.sum(0), heights.sum(0)[0], atol=0.3)
  assert 'mean over time' in find(card, '.state')[0].text

  (tmp_path / 'broken.jpg').write_bytes(encoded(image, '.jpg')[:300])
  card = told(browser, tmp_path / 'broken.jpg')
  assert 'not a readable image' in find(card, '.state')[0].text
  assert not bars(card) and not find(card, '.shown *')
  (tmp_path / 'large.jpg').write_bytes(bytes(1_000_001))
  card = told(browser, tmp_path / 'large.jpg')
  assert 'too large, expected at most 1 MB' in find(card, '.state')[0].text

  # Only what was refused is an error, and no policy was broken.
  errors = [e['message'] for e in browser.get_log('browser')
            if e['level'] == 'SEVERE']  # fmt: skip
  assert len(errors) == 1 and '415' in errors[0], errors


def test_camera_and_blurred_faces_in_chromium(address, browser, monkeypatch):
  monkeypatch.setattr(faces, 'detect', lambda image: np.zeros((0, 4), int))
  browser.get(address)
  find(browser, '#blur')[0].click()
  find(browser, '#camera')[0].click()
  ready = 'return document.getElementById("view").videoWidth > 0'
  wait(browser, lambda: browser.execute_script(ready))
  view = find(browser, '#view')[0]
  assert 'blur' in view.value_of_css_property('filter')
  find(browser, '#shot')[0].click()
  wait(browser, lambda: find(browser, '.bar') and find(browser, 'figcaption'))
  assert 'pixelated' in find(browser, 'figcaption')[0].text
  # Never the picture as it was.
  for picture in find(browser, '.shown img'):
    assert picture.get_attribute('src').startswith('data:')
  find(browser, '#watch')[0].click()
  wait(browser, lambda: find(browser, '.course polyline'))
  find(browser, '#stop')[0].click()
  assert not find(browser, '#live')[0].is_displayed()
