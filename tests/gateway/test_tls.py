"""HTTPS: what it serves, whom it lets in, and what is said of files that cannot work."""

import asyncio
import shutil
import ssl
from pathlib import Path

import aiohttp
import pytest
from tests.gateway.harness import CHAT_BODY, running, until_ready
from tests.tools.certificates import OPENSSL, make_certificate
from tests.tools.fake_tokenizer import FakeTokenizer, text

from octavo.shared.config import Config
from octavo.shared.errors import ConfigError
from octavo.shared.tls import Certificate

pytestmark = pytest.mark.skipif(not OPENSSL, reason="needs the openssl command to make certificates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        make_certificate(folder, name)
    return folder


def named(folder: Path, name: str) -> dict[str, str]:
    return {"ssl_certfile": str(folder / f"{name}.pem"), "ssl_keyfile": str(folder / f"{name}.key")}


def believing(folder: Path, showing: str | None = None) -> ssl.SSLContext:
    """A client that believes the server's certificate alone, and may show one."""
    context = ssl.create_default_context(cafile=str(folder / "server.pem"))
    if showing is not None:
        context.load_cert_chain(folder / f"{showing}.pem", folder / f"{showing}.key")
    return context


def test_answers_streams_and_large_bodies_come_over_https(tmp_path: Path, folder: Path) -> None:
    large = b"a" * (3 * 2**20)

    async def scenario() -> None:
        async with running(tmp_path, client_tls=believing(folder), **named(folder, "server")) as server:
            assert server.address.startswith("https://")
            with FakeTokenizer(tmp_path, lambda call: [text(call, large), text(call, b"end", is_last=True)]):
                await until_ready(server.client)
                for stream in (True, False):
                    response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": stream})
                    assert await response.read() == large + b"end"
            plain = "http" + server.address.removeprefix("https")
            with pytest.raises(aiohttp.ClientError):
                await server.client.get(f"{plain}/livez")

    asyncio.run(scenario())


def test_with_authorities_only_clients_with_their_certificates_come_in(tmp_path: Path, folder: Path) -> None:
    authorities = named(folder, "server") | {"ssl_ca_certs": str(folder / "client.pem")}

    async def scenario(expected: list[bool], **settings: object) -> None:
        async with running(tmp_path, client_tls=believing(folder), **authorities, **settings) as server:
            came_in = []
            for showing in ("client", None, "stranger"):
                try:
                    response = await server.client.get("/livez", ssl=believing(folder, showing))
                    came_in.append(response.status == 200)
                except aiohttp.ClientError:
                    came_in.append(False)
            assert came_in == expected

    asyncio.run(scenario([True, False, False]))
    asyncio.run(scenario([True, True, False], ssl_cert_reqs=1))
    asyncio.run(scenario([True, True, True], ssl_cert_reqs=0))


def test_a_renewed_certificate_is_shown_to_new_clients_once_both_files_are_there(tmp_path: Path, folder: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("server.pem", "server.key"):
        shutil.copy(folder / name, mine / name)

    async def shown(address: str) -> str:
        port = int(address.rpartition(":")[2])
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    async def scenario() -> None:
        async with running(tmp_path, client_tls=believing(folder), **named(mine, "server")) as server:
            old = await shown(server.address)
            assert old.strip() == (folder / "server.pem").read_text().strip()
            certificate = server.gateway._certificate
            shutil.copy(folder / "stranger.pem", mine / "server.pem")
            certificate.refresh()
            assert await shown(server.address) == old
            shutil.copy(folder / "stranger.key", mine / "server.key")
            certificate.refresh()
            assert (await shown(server.address)).strip() == (folder / "stranger.pem").read_text().strip()

    asyncio.run(scenario())


def test_the_running_gateway_looks_for_a_renewed_certificate_by_itself(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "both.pem"

    def both(name: str) -> str:
        return (folder / f"{name}.pem").read_text() + (folder / f"{name}.key").read_text()

    file.write_text(both("server"))

    async def scenario() -> None:
        async with running(tmp_path, client_tls=believing(folder), ssl_certfile=str(file)) as server:
            port = int(server.address.rpartition(":")[2])
            file.write_text(both("stranger"))
            new = (folder / "stranger.pem").read_text().strip()
            shown: list[str] = []

            async def look() -> None:
                while not shown or shown[-1] != new:
                    certificate = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
                    shown.append(certificate.strip())

            async with asyncio.timeout(60):
                await look()

    asyncio.run(scenario())


def test_files_that_cannot_work_are_refused_with_their_flag(folder: Path, tmp_path: Path) -> None:
    server, empty = named(folder, "server"), tmp_path / "empty.pem"
    empty.touch()
    encrypted, its_key = make_certificate(tmp_path, "encrypted", "-passout", "pass:secret")
    for settings, sentence in (
        (server | {"ssl_certfile": "/no/file"}, "--ssl-certfile /no/file cannot be read: No such file"),
        (server | {"ssl_keyfile": "/no/file"}, "--ssl-keyfile /no/file cannot be read: No such file"),
        (server | {"ssl_certfile": str(tmp_path)}, "cannot be read: Is a directory"),
        (server | {"ssl_keyfile": str(folder / "client.key")}, "client.key is not the key of --ssl-certfile"),
        (server | {"ssl_keyfile": server["ssl_certfile"]}, "are not a certificate and its key in PEM form"),
        ({"ssl_certfile": server["ssl_certfile"]}, "are not a certificate and its key in PEM form"),
        (server | {"ssl_certfile": str(empty)}, "are not a certificate and its key in PEM form"),
        ({"ssl_certfile": encrypted, "ssl_keyfile": its_key}, "encrypted.key is encrypted; decrypt it"),
        (server | {"ssl_ca_certs": "/no/file"}, "--ssl-ca-certs /no/file cannot be read"),
        (server | {"ssl_ca_certs": str(empty)}, "empty.pem holds no certificate"),
    ):
        with pytest.raises(ConfigError) as caught:
            Certificate(Config(**settings))  # type: ignore[arg-type]  # all are of these fields
        assert sentence in str(caught.value)


def test_settings_that_contradict_each_other_are_refused(folder: Path) -> None:
    for settings, sentence in (
        ({"ssl_keyfile": "a"}, "--ssl-keyfile is of no use without --ssl-certfile"),
        ({"ssl_ca_certs": "a"}, "--ssl-ca-certs is of no use without --ssl-certfile"),
        ({"ssl_certfile": "a", "ssl_cert_reqs": 2}, "--ssl-cert-reqs 2 needs --ssl-ca-certs"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Config(**settings)  # type: ignore[arg-type]  # all are of these fields
