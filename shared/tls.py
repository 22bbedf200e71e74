"""The certificate that a server shows, and those that it asks its clients for."""

import logging
import os
import ssl
from collections.abc import Iterator

from octavo.shared.config import Config
from octavo.shared.errors import ConfigError

log = logging.getLogger(__name__)


class Certificate:
    """A TLS context that follows its files: they can be renewed while the server runs."""

    def __init__(self, config: Config) -> None:
        """Read what the --ssl-* flags name; without them there is no context.

        Raises:
            ConfigError: a file cannot be read or is not what it should be, or the key is not the certificate's.
        """
        self._config = config
        self.context = server_context(config)
        self._modified_s = self._look()

    def refresh(self) -> None:
        """Show new clients the certificate that lies there now. Due every now and then."""
        modified_s = self._look()
        if self.context is None or modified_s == self._modified_s:
            return
        self._modified_s = modified_s
        try:
            server_context(self._config)  # a context that took only half of a pair could serve nobody
            _load(self.context, self._config)
        except ConfigError as error:
            # They may be in the middle of being written; when they change again we look again.
            log.warning("certificate not renewed", extra={"reason": str(error)})
            return
        log.info("certificate renewed")

    def _look(self) -> list[tuple[int, int]]:
        """What changes when the files do; nothing of those that are missing."""
        return list(_stamps(self._config.ssl_certfile, self._config.ssl_keyfile))


def server_context(config: Config) -> ssl.SSLContext | None:
    """What the --ssl-* flags describe; None: no TLS.

    Raises:
        ConfigError: a file cannot be read or is not what it should be, or the key is not the certificate's.
    """
    if config.ssl_certfile is None:
        return None
    for flag, path in (("certfile", config.ssl_certfile), ("keyfile", config.ssl_keyfile)):
        _check_readable(f"--ssl-{flag}", path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, config)
    if config.ssl_ca_certs is not None:
        _check_readable("--ssl-ca-certs", config.ssl_ca_certs)
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except ssl.SSLError:
            raise ConfigError(f"--ssl-ca-certs {config.ssl_ca_certs} holds no certificate in PEM form") from None
        context.verify_mode = ssl.VerifyMode(2 if config.ssl_cert_reqs is None else config.ssl_cert_reqs)
    return context


def _load(context: ssl.SSLContext, config: Config) -> None:
    """Let the context show the certificate. Raises ConfigError; the context may then be of no use."""
    certfile = config.ssl_certfile
    assert certfile is not None
    flag, keyfile = ("--ssl-keyfile", config.ssl_keyfile) if config.ssl_keyfile else ("--ssl-certfile", certfile)
    try:
        context.load_cert_chain(certfile, keyfile, password=_refuse_password)
    except _Encrypted:
        raise ConfigError(f"{flag} {keyfile} is encrypted; decrypt it with `openssl pkey`") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{flag} {keyfile} is not the key of --ssl-certfile {certfile}") from None
        sentence = f"--ssl-certfile {certfile} and {flag} {keyfile} are not a certificate and its key in PEM form"
        raise ConfigError(sentence) from None
    except OSError as error:
        raise ConfigError(f"--ssl-certfile {certfile} or {flag} {keyfile}: {error.strerror}") from None


class _Encrypted(Exception):
    pass


def _refuse_password() -> str:
    # Without this OpenSSL asks at the terminal, and waits.
    raise _Encrypted


def _check_readable(flag: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from None


def _stamps(*paths: str | None) -> Iterator[tuple[int, int]]:
    for path in paths:
        try:
            if path is not None:
                found = os.stat(path)
                yield found.st_mtime_ns, found.st_ino
        except OSError:
            continue
