"""Handling of SIGTERM and SIGINT: the run saves a checkpoint and exits.

SIGTERM (preemption, a time limit, `docker stop`) and SIGINT (Ctrl-C) stop the
run at the end of the current step, with exit code `EXIT_CODE`. A second signal
ends the process immediately.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h. Launchers run the same command again on this code.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
  """The run was asked to stop; a checkpoint has been saved."""


class Stop:
  """Context manager that handles the signals; for the main thread only."""

  def __init__(self):
    self._given = threading.Event()
    self._reached = False
    self._undo = contextlib.ExitStack()

  def given(self) -> bool:
    """Whether a signal was received; always False with several processes."""
    return self._given.is_set() and jax.process_count() == 1

  def at_step(self, step: int) -> bool:
    """Whether to stop at a step; the same on all processes.

    Args:
      step: number of steps done; must increase from call to call.

    Returns:
      True from the step on that the processes have agreed on.
    """
    if jax.process_count() == 1:
      return self.given()
    if multihost_utils.reached_preemption_sync_point(step):
      self._reached = True
    return self._reached

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is not threading.main_thread():
      return self
    # The wakeup file descriptor is written by C code. A thread that reads it
    # also reacts while the main thread is blocked, for example in a long
    # compilation or in a collective with a process that has ended.
    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(
        target=self._listen, args=(here,), name='signals', daemon=True
    )
    thread.start()
    self._undo.callback(here.close)
    self._undo.callback(thread.join)
    self._undo.callback(there.close)
    self._undo.callback(signal.set_wakeup_fd, before)
    for number in _SIGNALS:
      if number == signal.SIGTERM and jax.process_count() > 1:
        continue  # JAX's preemption service handles it for all processes.
      old = signal.signal(number, lambda *_: None)
      self._undo.callback(signal.signal, number, old)
    return self

  def __exit__(self, *exc) -> None:
    self._undo.close()

  def _listen(self, pipe: socket.socket) -> None:
    while data := pipe.recv(1):
      if data[0] not in _SIGNALS:
        continue
      if self._given.is_set():
        end_now(128 + data[0])
      self._given.set()
      print(
          'Signal received: saving a checkpoint at the end of this step (a '
          'second signal ends the process immediately)',
          file=sys.stderr,
          flush=True,
      )
      if jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)


def end_now(code: int) -> None:
  """Ends the process and its data workers immediately.

  Args:
    code: exit code.
  """
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)
