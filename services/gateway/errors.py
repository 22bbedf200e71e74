"""Errors as HTTP answers: each is the error object of the API that was asked, and none tells of our insides."""

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from octavo.services.gateway.manner import anthropic_error_body
from octavo.shared.errors import Internal, InvalidRequest, NotFound, RequestError, TooLarge, error_body

log = logging.getLogger(__name__)


LABEL = web.RequestKey("label", str)
"""What the client, or we, call the request in headers and logs. Nothing is ever found by it."""


class MethodNotAllowed(InvalidRequest):
    status = 405


class UnsupportedMediaType(InvalidRequest):
    status = 415


def error_response(request: web.Request, error: RequestError) -> web.Response:
    """The error's status, body and Retry-After."""
    body = anthropic_error_body(error) if request.path.startswith("/v1/messages") else error_body(error)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an answer."""
    try:
        return await handler(request)
    except RequestError as error:
        return error_response(request, error)
    except web.HTTPException as error:
        response = error_response(request, _from_aiohttp(request, error))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except web.RequestPayloadError:
        return error_response(request, InvalidRequest("the body is broken, or ended early"))
    except ConnectionError:
        raise  # nobody is left to answer
    except Exception:
        log.exception("request failed", extra={"request": request.get(LABEL)})
        if request.writer.output_size:
            raise  # a second answer in the middle of the first would be worse than a cut connection
        return error_response(request, Internal("the server failed on this request; its log has the reason"))


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> RequestError:
    place = f"{request.method[:20]!a} {request.path[:200]!a}"
    match error.status:
        case 404:
            return NotFound(f"nothing is served at {place}", code="unknown_path")
        case 405:
            return MethodNotAllowed(f"{place}: no such method here", code="method_not_allowed")
        case 413:
            size = request.content_length
            was = f"has {size} bytes" if size is not None else "is too large"
            limit = request.client_max_size
            return TooLarge(f"the body {was}; at most {limit} bytes are taken (--max-body-mib)", code="body_too_large")
        case _ if error.status < 500:
            return InvalidRequest(f"{place}: {error.reason}")
        case _:
            return Internal("the server failed on this request; its log has the reason")
