"""The web application: a page, `/predict` and `/health`."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vemd_jax.web.judge import Refused

_PAGE = pathlib.Path(__file__).parent / 'page'
_FILES = {
    '/': ('index.html', 'text/html'),
    '/page.js': ('page.js', 'text/javascript'),
    '/page.css': ('page.css', 'text/css'),
}
_HEADERS = {
    'Cache-Control': 'no-store',
    # The page can neither load from nor send to other hosts.
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}


def make_app(
    judge: Callable[[bytes, bool, bool], dict[str, Any]],
    about: dict[str, Any],
    *,
    hosts: Sequence[str] = ('127.0.0.1', 'localhost'),
    max_bytes: int = 200_000_000,
    max_waiting: int = 8,
) -> Starlette:
  """Creates the application.

  Args:
    judge: (bytes, heatmap, blur) -> result, see `judge.Judge`.
    about: properties of the model for `/health`.
    hosts: accepted host names, ('*',) for any; prevents DNS rebinding by other
      sites.
    max_bytes: largest file.
    max_waiting: largest number of concurrent requests; further ones get 503.

  Returns:
    The application.
  """
  in_hand = anyio.Semaphore(max_waiting)

  async def predict(request: Request) -> Response:
    kind = request.headers.get('content-type', '').partition('/')[0]
    if kind not in ('image', 'video', 'application'):
      # Browsers send these types for other sites without a preflight request.
      return _error(415, 'expected the content of a photograph or a video')
    try:
      in_hand.acquire_nowait()
    except anyio.WouldBlock:
      return _error(503, 'busy; try again in a moment')
    try:
      data = await _body(request, max_bytes)
      wish = request.query_params
      answer = await run_in_threadpool(
          judge, data, wish.get('heatmap') == '1', wish.get('blur') == '1'
      )
    except Refused as error:
      return _error(error.status, str(error))
    except ImportError as error:
      return _error(501, str(error))
    except ClientDisconnect:
      return _error(400, 'the upload was interrupted')
    finally:
      in_hand.release()
    return JSONResponse(answer, headers=_HEADERS)

  async def health(request: Request) -> Response:
    return JSONResponse({'status': 'ok', **about}, headers=_HEADERS)

  async def page(request: Request) -> Response:
    name, kind = _FILES[request.url.path]
    return FileResponse(_PAGE / name, media_type=kind, headers=_HEADERS)

  return Starlette(
      routes=[
          Route('/predict', predict, methods=['POST']),
          Route('/health', health),
          *(Route(path, page) for path in _FILES),
      ],
      middleware=[
          Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
      ],
  )


async def _body(request: Request, limit: int) -> bytes:
  """Reads the body up to a limit."""
  parts, size = [], 0
  async for part in request.stream():
    size += len(part)
    if size > limit:
      raise Refused(
          413, f'the file is too large, expected at most {limit / 1e6:g} MB'
      )
    parts.append(part)
  if not size:
    raise Refused(415, 'the file is empty')
  return b''.join(parts)


def _error(status: int, message: str) -> Response:
  return JSONResponse({'error': message}, status, headers=_HEADERS)
