"""A certificate with its chain, and its private key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from appliance.tls.errors import TlsError


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM as it lies in the files, and what is in it: the server's own certificate is the first of the chain."""

    chain_pem: bytes
    key_pem: bytes
    certificate: x509.Certificate
    key: PrivateKeyTypes


def read_pair(certificate_file: Path, key_file: Path) -> Pair:
    """Raises TlsError when a file cannot be read or understood, or when the two do not belong together."""
    return parse_pair(_read(certificate_file), _read(key_file), str(certificate_file), str(key_file))


def parse_pair(chain_pem: bytes, key_pem: bytes, certificate_name: str, key_name: str) -> Pair:
    """The names are for the error."""
    try:
        certificate = x509.load_pem_x509_certificates(chain_pem)[0]
    except ValueError as error:
        raise TlsError(f"{certificate_name} holds no certificate in PEM form: {error}.") from error
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise TlsError(f"The key in {key_name} is encrypted; NGINX could not start without its passphrase.") from error
    except ValueError as error:
        raise TlsError(f"{key_name} holds no private key in PEM form: {error}.") from error
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        raise TlsError(f"The key in {key_name} is not that of the first certificate in {certificate_name}.")
    return Pair(chain_pem, key_pem, certificate, key)


def made_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), key_pem, certificate, key)


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}.") from error
