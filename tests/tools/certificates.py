"""Certificates made on the spot, by the openssl command."""

import shutil
import subprocess
from pathlib import Path

OPENSSL = shutil.which("openssl") or ""
"""Empty where there is no such command."""


def make_certificate(folder: Path, name: str, *more: str) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key; returns the paths of both."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate), *(more or ["-noenc"])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return str(certificate), str(key)
