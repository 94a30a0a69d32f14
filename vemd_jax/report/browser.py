"""Prints pages with headless Chromium, by the DevTools protocol over pipes."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

_NAMES = (
    'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable',
    'chrome', 'chrome-headless-shell', 'microsoft-edge',
)  # fmt: skip


def find() -> str:
  """The path of Chromium or Chrome; VEMD_CHROMIUM takes precedence.

  Raises:
    FileNotFoundError: if none is installed.
  """
  for name in (os.environ.get('VEMD_CHROMIUM', ''), *_NAMES):
    path = shutil.which(name) if name else None
    if path:
      return path
  raise FileNotFoundError(
      'PDF and PNG need Chromium or Chrome, and none was found; install one '
      '(apt install chromium), set VEMD_CHROMIUM to its path, or open the HTML '
      'file in a browser and print it'
  )


# Chromium reads requests from descriptor 3 and answers on 4.
_START = '''
import fcntl, os, sys
pipes = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):
  os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
'''


class Page:
  """A page in a browser.

  Attributes:
    events: events from the browser, as (method, parameters).
  """

  def __init__(self, requests, answers):
    self._requests, self._answers = requests, answers
    self._count, self._session = 0, ''
    self.events: list[tuple[str, dict]] = []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call(
        'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in 'Page', 'Runtime', 'Log', 'Network':
      self.call(f'{domain}.enable')

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Calls a method of the protocol and waits for its answer.

    Raises:
      OSError: if the call fails or the browser has exited.
    """
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    self._requests.write(json.dumps(message).encode() + b'\0')
    self._requests.flush()
    while True:
      answer = self._read()
      if answer.get('id') == self._count:
        if 'error' in answer:
          raise OSError(f'Chromium: {method}: {answer["error"]["message"]}')
        return answer['result']

  def _read(self) -> dict[str, Any]:
    data = bytearray()
    while (byte := self._answers.read(1)) != b'\0':
      if not byte:
        raise OSError('Chromium has exited')
      data += byte
    answer = json.loads(data)
    if 'method' in answer:
      self.events.append((answer['method'], answer['params']))
    return answer

  def open(
      self, path: epath.PathLike, width: int = 1200, phone: bool = False
  ) -> None:
    """Opens a file and waits until it is loaded.

    Args:
      path: path of an HTML file.
      width: width of the window in CSS pixels.
      phone: whether to emulate a phone.
    """
    self.call(
        'Emulation.setDeviceMetricsOverride',
        width=width, height=900, deviceScaleFactor=1, mobile=phone,
    )  # fmt: skip
    before = len(self.events)
    self.call('Page.navigate', url=f'file://{epath.Path(path).absolute()}')
    while 'Page.loadEventFired' not in [e[0] for e in self.events[before:]]:
      self._read()
    # Pictures outside the window are otherwise loaded when scrolled to.
    self.evaluate(
        "document.querySelectorAll('img').forEach(i => i.loading = 'eager');"
        'Promise.all([...document.images].map(i => i.decode()))'
    )

  def evaluate(self, script: str) -> Any:
    """Evaluates JavaScript in the page."""
    result = self.call(
        'Runtime.evaluate',
        expression=script, returnByValue=True, awaitPromise=True,
    )  # fmt: skip
    return result['result'].get('value')

  def png(self) -> bytes:
    """A screenshot of the whole page."""
    size = self.call('Page.getLayoutMetrics')['cssContentSize']
    clip = {'x': 0, 'y': 0, 'scale': 1, **{
        side: size[side] for side in ('width', 'height')
    }}  # fmt: skip
    picture = self.call(
        'Page.captureScreenshot', clip=clip, captureBeyondViewport=True
    )
    return base64.b64decode(picture['data'])

  def pdf(self) -> bytes:
    """The page as PDF, on A4."""
    document = self.call(
        'Page.printToPDF',
        printBackground=True, paperWidth=8.27, paperHeight=11.69,
        marginTop=0.5, marginBottom=0.5, marginLeft=0.5, marginRight=0.5,
    )  # fmt: skip
    return base64.b64decode(document['data'])


@contextlib.contextmanager
def browse() -> Iterator[Page]:
  """Starts a browser with one page.

  Yields:
    The page.

  Raises:
    FileNotFoundError: if Chromium is not installed.
    OSError: if it does not start.
  """
  program = find()
  to_browser, requests = os.pipe()
  answers, from_browser = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    command = [
        program, '--headless=new', '--remote-debugging-pipe', '--disable-gpu',
        '--no-first-run', '--disable-extensions', '--disable-dev-shm-usage',
        '--disable-background-networking', '--hide-scrollbars',
        f'--user-data-dir={profile}',
    ]  # fmt: skip
    if os.geteuid() == 0:
      command.append('--no-sandbox')  # Required for root.
    process = subprocess.Popen(
        [sys.executable, '-S', '-c', _START, f'{to_browser}', f'{from_browser}',
         *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    with os.fdopen(requests, 'wb') as out, os.fdopen(answers, 'rb') as back:
      try:
        yield Page(out, back)
      finally:
        process.kill()
        process.wait()
