"""Certificates for servers of tests."""

from __future__ import annotations

from pathlib import Path


def making_certificate(folder: Path, name: str = "localhost") -> list[str | Path]:
    """Return the command that makes `key.pem` and `certificate.pem`, signed by itself, for a name and 127.0.0.1."""
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-days", "2"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key.pem"]
    return ["openssl", "req", "-x509", *key, "-out", folder / "certificate.pem", *names]
