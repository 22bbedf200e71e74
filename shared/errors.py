"""The tree of errors, each with what a client is told of it.

OctavoError
├── ConfigError          a setting is wrong: the command ends with its sentence
├── ModelError           a model cannot be read or served: the command ends with its sentence
└── RequestError         one request ends with this status; nobody else notices
    ├── InvalidRequest   400, names the parameter
    ├── Unauthorized     401
    ├── NotFound         404
    ├── TooLarge         413
    ├── Overloaded       429, says when to come back
    ├── Internal         500
    └── Unavailable      503, says when to come back
"""

import msgspec


class OctavoError(Exception):
    """Everything that Octavo raises on purpose."""


class ConfigError(OctavoError):
    """A setting, or two settings together, cannot work."""


class ModelError(OctavoError):
    """A model's files cannot be read, or describe what is not supported."""


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A RequestError as it travels between processes."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None


class RequestError(OctavoError):
    """One request's failure, with the HTTP status and the fields of OpenAI's error object."""

    status = 500
    kind = "server_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def info(self) -> ErrorInfo:
        return ErrorInfo(self.status, self.message, self.param, self.code, self.retry_after_s)


class InvalidRequest(RequestError):
    status = 400
    kind = "invalid_request_error"


class Unauthorized(RequestError):
    status = 401
    kind = "authentication_error"


class NotFound(RequestError):
    status = 404
    kind = "not_found_error"


class TooLarge(RequestError):
    status = 413
    kind = "invalid_request_error"


class Overloaded(RequestError):
    status = 429
    kind = "rate_limit_error"


class Internal(RequestError):
    status = 500
    kind = "server_error"


class Unavailable(RequestError):
    status = 503
    kind = "service_unavailable_error"


BY_STATUS: dict[int, type[RequestError]] = {
    kind.status: kind for kind in (InvalidRequest, Unauthorized, NotFound, TooLarge, Overloaded, Internal, Unavailable)
}


def from_info(info: ErrorInfo) -> RequestError:
    """The error that `info` was made from."""
    kind = BY_STATUS.get(info.status, RequestError)
    return kind(info.message, info.param, info.code, info.retry_after_s)


def error_body(error: RequestError) -> bytes:
    """The JSON of OpenAI's error object."""
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})
