"""A whole server behind TLS and keys, as `octavo serve` starts it."""

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.tools.certificates import OPENSSL, make_certificate
from tests.tools.server import WAIT_S, running, started

OCTAVO = str(Path(sys.executable).parent / "octavo")
KEYS = ("sk-flag-3f9c", "sk-file-77ab")

pytestmark = pytest.mark.skipif(not OPENSSL, reason="needs the openssl command to make certificates")


def test_a_server_with_client_certificates_and_keys_starts_serves_and_shows_no_key(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    keys = tmp_path / "keys"
    keys.write_text(f"# one a line\n{KEYS[1]}\n")
    flags = ["--device", "sim", "--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-ca-certs", certificate]
    flags += ["--api-key", KEYS[0], "--api-key-file", str(keys)]
    client = ssl.create_default_context(cafile=certificate)
    client.load_cert_chain(certificate, key)
    with running(*flags) as server:
        url = server.url.replace("http://", "https://")
        for each in KEYS:
            body = json.dumps({"prompt": "Hi", "max_tokens": 3}).encode()
            request = urllib.request.Request(f"{url}/v1/completions", body, {"X-Api-Key": each})
            with urllib.request.urlopen(request, timeout=WAIT_S, context=client) as answer:
                assert json.loads(answer.read())["usage"]["completion_tokens"] == 3
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=WAIT_S, context=client)
        assert f"at {url}\n" in server.output
        services = server.services()
        assert len(services) >= 4
        for service in services:
            assert not [part for part in service.cmdline() if any(each in part for each in KEYS)]
        assert not [each for each in KEYS if each in server.output + server.errors]
        [folder] = server.folder.glob("octavo-*")
        health = subprocess.run([OCTAVO, "health", "gateway-0", str(folder)], timeout=WAIT_S)
        assert health.returncode == 0


def test_a_wrong_certificate_is_told_before_anything_starts(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path, "one")
    _, other = make_certificate(tmp_path, "two")
    with started("--device", "sim", "--ssl-certfile", certificate, "--ssl-keyfile", other) as (process, folder):
        assert process.wait(WAIT_S) == 2
        sentence = f"octavo: --ssl-keyfile {other} is not the key of --ssl-certfile {certificate}\n"
        assert (folder / "stderr").read_text() == sentence
        assert (folder / "stdout").read_text() == ""
