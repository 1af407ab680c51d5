"""Where the server listens: a Unix socket, HTTPS."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.engine.client import EngineClient
from appliance.server.app import create_app
from appliance.server.http_server import HttpServer
from appliance.server.listening import listen
from appliance.text.tokenizer import Tokenizer
from tests.integration.server.harness import settings_with


def self_signed(folder: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    (folder / "cert.pem").write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def livez(
    folder: Path, tokenizer: Tokenizer, connector: aiohttp.BaseConnector, host: str, **options: Any
) -> tuple[str, int]:
    """Starts a server without any engine, and asks whether it lives. `PORT` in `host` becomes the port it took."""
    client = EngineClient(folder / "engine.sock")
    settings = settings_with(**options)
    server = HttpServer(create_app(settings, client, lambda: tokenizer))
    listening = listen(settings.server)
    await server.start(listening)
    url = listening.url
    asked = host.replace("PORT", url.rsplit(":", 1)[-1]) + "/livez"
    try:
        async with aiohttp.ClientSession(connector=connector) as session, session.get(asked) as response:
            return url, response.status
    finally:
        await server.stop()


async def test_a_unix_socket_is_served(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = str(tmp_path / "http.sock")
    url, status = await livez(tmp_path, tokenizer, aiohttp.UnixConnector(path), "http://localhost", uds=path)
    assert (url, status) == (f"unix:{path}", 200)


async def test_https_is_served_with_a_certificate(tmp_path: Path, tokenizer: Tokenizer) -> None:
    certificate, key = self_signed(tmp_path)
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=certificate))
    url, status = await livez(
        tmp_path, tokenizer, connector, "https://localhost:PORT", ssl_certfile=certificate, ssl_keyfile=key
    )
    assert status == 200 and url.startswith("https://")
