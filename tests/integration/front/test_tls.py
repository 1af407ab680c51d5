"""The front's TLS as a stranger sees it, and what happens to it when certificates change."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import sslyze
from cryptography import x509
from sslyze.mozilla_tls_profile import tls_config_checker as checker

from appliance.config import ServerSettings, Settings
from appliance.front.description import Layout, machine_front
from appliance.tls.certificates import MachineCertificate
from appliance.tls.deploy import reload_nginx
from appliance.tls.errors import TlsError
from appliance.tls.names import local_names, parsed_names
from appliance.tls.pair import made_pair
from appliance.tls.self_signed import new_key, self_signed
from tests.integration.front.conftest import FrontedServer
from tests.support.nginx import RunningNginx, layout_in, needs_nginx, program, running_nginx

pytestmark = [
    needs_nginx,
    # of an authority's certificate in the scanner's own collection
    pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive"),
]

NOW = datetime.datetime.now(datetime.UTC)
SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}


def guidelines_6() -> checker.TlsConfigurationAsJson:
    """Mozilla's intermediate configuration. The scanner ships 5.7, of which 6.0 dropped finite-field Diffie-Hellman."""
    older = checker.MozillaTlsConfiguration.get(checker.TlsConfigurationEnum.MOZILLA_INTERMEDIATE)
    changes: dict[str, Any] = {
        "ciphers": older.ciphers.model_copy(update={"iana": SUITES}),
        "dh_param_size": None,
        "tls_curves": older.tls_curves | {"X25519MLKEM768"},
    }
    return older.model_copy(update=changes)


def scanned(port: int) -> sslyze.ServerScanResult:
    location = sslyze.ServerNetworkLocation("localhost", port=port, ip_address="127.0.0.1")
    commands = checker.SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER | {
        sslyze.ScanCommand.TLS_1_3_EARLY_DATA,
        sslyze.ScanCommand.HTTP_HEADERS,
    }
    scanner = sslyze.Scanner()
    scanner.queue_scans([sslyze.ServerScanRequest(location, scan_commands=commands)])
    [result] = scanner.get_results()
    assert result.connectivity_status is sslyze.ServerConnectivityStatusEnum.COMPLETED
    assert isinstance(result, sslyze.ServerScanResult)
    return result


async def test_the_only_weakness_is_that_nobody_signed_the_certificate(fronted: FrontedServer) -> None:
    result = await asyncio.to_thread(scanned, fronted.nginx.layout.https_port)
    with pytest.raises(checker.ServerNotCompliantWithTlsConfiguration) as found:
        checker.check_server_against_tls_configuration(result, guidelines_6())
    assert set(found.value.issues) == {"certificate_path_validation"}
    scan = result.scan_result
    assert scan is not None
    accepted = {
        suite.cipher_suite.name
        for attempt in (scan.tls_1_2_cipher_suites, scan.tls_1_3_cipher_suites)
        for suite in attempt.result.accepted_cipher_suites  # type: ignore[union-attr]
    }
    assert {suite for suite in SUITES if "ECDSA" in suite} < accepted  # our key is an elliptic one
    assert "DHE_RSA" not in "".join(accepted - SUITES)
    assert scan.tls_1_3_early_data.result.supports_early_data is False  # type: ignore[union-attr]
    hsts = scan.http_headers.result.strict_transport_security_header  # type: ignore[union-attr]
    assert hsts is not None and hsts.max_age == 63072000


async def test_the_grade_notices_a_weakness(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    weaker = [("ssl_ciphers ECDHE", "ssl_ciphers ECDHE-ECDSA-AES128-SHA:ECDHE")]
    async with running_nginx(machine_front(Settings(server=ServerSettings(api_key=("k",)))), tmp_path, layout, weaker):
        result = await asyncio.to_thread(scanned, layout.https_port)
    with pytest.raises(checker.ServerNotCompliantWithTlsConfiguration) as found:
        checker.check_server_against_tls_configuration(result, guidelines_6())
    assert "ciphers" in found.value.issues


# ---- certificates that change ----------------------------------------------------------------------------------------


def served_serial(layout: Layout) -> int:
    pem = ssl.get_server_certificate(("127.0.0.1", layout.https_port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def until_served(nginx: RunningNginx, serial: int) -> None:
    """A reload starts new worker processes, and the old ones still accept for a moment."""
    for _ in range(300):
        if await asyncio.to_thread(served_serial, nginx.layout) == serial:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("NGINX does not serve the new certificate")


async def test_nginx_serves_a_renewed_certificate_and_keeps_the_old_one_when_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program()
    assert path is not None
    monkeypatch.setenv("PATH", str(Path(path).parent), prepend=":")
    live = tmp_path / "tls" / "live"
    layout = dataclasses.replace(
        layout_in(tmp_path), certificate=live / "fullchain.pem", certificate_key=live / "privkey.pem"
    )
    machine = MachineCertificate(tmp_path / "tls", lambda: None)
    assert machine.ensure(local_names(), NOW).changed
    async with running_nginx(machine_front(Settings(server=ServerSettings(api_key=("k",)))), tmp_path, layout) as nginx:
        first = served_serial(layout)
        config = tmp_path / "nginx.conf"
        machine = MachineCertificate(tmp_path / "tls", lambda: reload_nginx(config, systemd=tmp_path / "no-systemd"))
        machine.renew(local_names(), NOW)
        pair = machine.read()
        assert pair is not None and pair.certificate.serial_number != first
        await until_served(nginx, pair.certificate.serial_number)

        config.write_text(config.read_text().replace("proxy_buffering off;", "proxy_buffering of;"))
        key = new_key()
        theirs = made_pair(self_signed(key, parsed_names(["example.org"]), NOW), key)
        (tmp_path / "theirs.pem").write_bytes(theirs.chain_pem)
        (tmp_path / "theirs.key").write_bytes(theirs.key_pem)
        with pytest.raises(TlsError, match=r'what was there before is in use again: .*invalid value "of"'):
            machine.install(tmp_path / "theirs.pem", tmp_path / "theirs.key", NOW)
        kept = machine.read()
        assert kept is not None and kept.certificate == pair.certificate
        assert served_serial(layout) == pair.certificate.serial_number
