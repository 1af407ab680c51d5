"""The machine's own certificate: made once, renewed in time, and never in the way of somebody else's."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from appliance.tls.certificates import MachineCertificate
from appliance.tls.errors import TlsError
from appliance.tls.names import INTERNAL_NAME, Names, local_names, parsed_names
from appliance.tls.self_signed import is_ours, names_of, new_key, self_signed

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
NAMES = parsed_names(["gpu-1.example.org", "10.0.0.5"])


class Machine:
    """A folder, a machine id, and a deployment that can be told to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tls"
        self.id = folder / "machine-id"
        self.id.write_text("one\n")
        self.deployed = 0
        self.refuses = False

    def deploy(self) -> None:
        self.deployed += 1
        if self.refuses:
            raise TlsError("NGINX refuses the new certificate")

    @property
    def certificate(self) -> MachineCertificate:
        return MachineCertificate(self.folder, self.deploy, self.id)

    def in_use(self) -> x509.Certificate:
        pair = self.certificate.read()
        assert pair is not None
        return pair.certificate

    def content(self) -> tuple[bytes, bytes]:
        return (self.folder / "live/fullchain.pem").read_bytes(), (self.folder / "live/privkey.pem").read_bytes()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def somebodys(folder: Path, valid_until: datetime.datetime = NOW + 90 * DAY) -> tuple[Path, Path]:
    """A certificate and key as an authority's customer has them; RSA, to be a different kind as well."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm.example.org")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(valid_until - 365 * DAY).not_valid_after(valid_until)
    folder.mkdir(parents=True, exist_ok=True)
    certificate_file, key_file = folder / "fullchain.pem", folder / "privkey.pem"
    certificate_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


def public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# ---- made at the first boot ------------------------------------------------------------------------------------------


def test_the_first_time_makes_one_and_the_second_keeps_it(machine: Machine) -> None:
    assert machine.certificate.ensure(NAMES, NOW).changed
    before = machine.content()
    assert not machine.certificate.ensure(NAMES, NOW + 300 * DAY).changed
    assert machine.content() == before and machine.deployed == 1
    assert is_ours(machine.in_use()) and names_of(machine.in_use()) == NAMES


def test_the_key_is_readable_by_its_owner_alone_whatever_the_umask(machine: Machine) -> None:
    umask = os.umask(0)
    try:
        machine.certificate.ensure(NAMES, NOW)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (machine.folder / "live").iterdir()}
    assert modes == {"fullchain.pem": 0o644, "privkey.pem": 0o600}


def test_it_is_what_clients_accept() -> None:
    certificate = self_signed(new_key(), NAMES, NOW)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime <= 366 * DAY  # TLS guidelines 6.0
    assert certificate.not_valid_before_utc < NOW  # a client's clock may be behind
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == "gpu-1.example.org"


def test_a_client_that_trusts_it_connects_by_every_name(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.certificate.ensure(local_names(), datetime.datetime.now(datetime.UTC))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(machine.folder / "live/fullchain.pem", machine.folder / "live/privkey.pem")
    client = ssl.create_default_context(cafile=str(machine.folder / "live/fullchain.pem"))
    for name in ("localhost", "127.0.0.1", "::1", INTERNAL_NAME):
        handshake(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "example.org")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    here, there = socket.socketpair()

    def answer() -> None:
        with there:
            try:
                server.wrap_socket(there, server_side=True).close()
            except (ssl.SSLError, OSError):
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(here, server_hostname=name).close()
    finally:
        here.close()
        thread.join()


# ---- renewed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "when"),
    [
        (NAMES, NOW + 340 * DAY),  # nearly expired
        (NAMES, NOW + 400 * DAY),  # expired while the machine was off
        (NAMES | parsed_names(["54.1.2.3"]), NOW + DAY),  # a new public address
        (NAMES, NOW - 2 * DAY),  # made while the clock was wrong
    ],
)
def test_ours_is_renewed_when_it_is_due_with_the_same_key(
    machine: Machine, names: Names, when: datetime.datetime
) -> None:
    machine.certificate.ensure(NAMES, NOW)
    first = machine.in_use()
    assert machine.certificate.ensure(names, when).changed
    assert names_of(machine.in_use()) == names
    assert machine.in_use().serial_number != first.serial_number
    assert public_key(machine.in_use()) == public_key(first)  # clients that pinned it still know it
    assert machine.in_use().not_valid_before_utc <= when < machine.in_use().not_valid_after_utc - 300 * DAY


def test_a_name_that_is_not_known_today_is_no_reason(machine: Machine) -> None:
    machine.certificate.ensure(NAMES | parsed_names(["54.1.2.3"]), NOW)
    assert not machine.certificate.ensure(NAMES, NOW + DAY).changed


def test_a_copy_of_the_machine_gets_a_key_of_its_own(machine: Machine) -> None:
    machine.certificate.ensure(NAMES, NOW)
    first = machine.in_use()
    machine.id.write_text("two\n")
    assert "another machine" in machine.certificate.ensure(NAMES, NOW).sentence
    assert public_key(machine.in_use()) != public_key(first)
    assert not machine.certificate.ensure(NAMES, NOW).changed


def test_renew_replaces_it_at_once_with_a_new_key(machine: Machine) -> None:
    machine.certificate.ensure(NAMES, NOW)
    first = machine.in_use()
    assert machine.certificate.renew(NAMES, NOW).changed
    assert public_key(machine.in_use()) != public_key(first)


def test_old_versions_do_not_pile_up(machine: Machine) -> None:
    for _ in range(5):
        machine.certificate.renew(NAMES, NOW)
    assert len(list((machine.folder / "versions").iterdir())) == 2


# ---- somebody else's -------------------------------------------------------------------------------------------------


def link_elsewhere(machine: Machine, folder: Path) -> None:
    (machine.folder / "live").unlink()
    (machine.folder / "live").symlink_to(folder)


def replace_files(machine: Machine, folder: Path) -> None:
    for file in folder.iterdir():
        (machine.folder / "live" / file.name).write_bytes(file.read_bytes())


def put_a_folder(machine: Machine, folder: Path) -> None:
    (machine.folder / "live").unlink()
    folder.rename(machine.folder / "live")


def by_command(machine: Machine, folder: Path) -> None:
    machine.certificate.install(folder / "fullchain.pem", folder / "privkey.pem", NOW)


@pytest.mark.parametrize("by", [link_elsewhere, replace_files, put_a_folder, by_command])
@pytest.mark.parametrize("when", [NOW, NOW + 1000 * DAY])
def test_an_installed_certificate_is_never_replaced(
    machine: Machine, tmp_path: Path, by: Callable[[Machine, Path], None], when: datetime.datetime
) -> None:
    machine.certificate.ensure(NAMES, NOW)
    somebodys(tmp_path / "theirs")
    by(machine, tmp_path / "theirs")
    before, deployed = machine.content(), machine.deployed
    for done in (machine.certificate.ensure(NAMES, when), machine.certificate.renew(NAMES, when)):
        assert not done.changed and "left alone" in done.sentence
        assert ("expired" in done.sentence) == (when > NOW)
    assert machine.content() == before and machine.deployed == deployed


def test_half_a_certificate_is_somebodys_too(machine: Machine) -> None:
    machine.certificate.ensure(NAMES, NOW)
    (machine.folder / "live/privkey.pem").unlink()
    with pytest.raises(TlsError, match="cannot be read"):
        machine.certificate.ensure(NAMES, NOW)
    (machine.folder / "live/privkey.pem").write_text("in the middle of being copied")
    with pytest.raises(TlsError, match="no private key"):
        machine.certificate.ensure(NAMES, NOW)


def test_a_certificate_of_the_same_organization_signed_by_another_key_is_not_ours(machine: Machine) -> None:
    mine = self_signed(new_key(), NAMES, NOW)
    other = new_key()
    forged = x509.CertificateBuilder().subject_name(mine.subject).issuer_name(mine.subject)
    forged = forged.public_key(new_key().public_key()).serial_number(1).not_valid_before(NOW).not_valid_after(NOW + DAY)
    assert is_ours(mine) and not is_ours(forged.sign(other, hashes.SHA256()))


# ---- installed -------------------------------------------------------------------------------------------------------


def test_install_puts_a_pair_into_use(machine: Machine, tmp_path: Path) -> None:
    machine.certificate.ensure(NAMES, NOW)
    certificate, key = somebodys(tmp_path / "theirs")
    assert machine.certificate.install(certificate, key, NOW).changed
    assert machine.content() == (certificate.read_bytes(), key.read_bytes())
    assert (machine.folder / "live/privkey.pem").stat().st_mode & 0o777 == 0o600


def test_what_nginx_refuses_is_taken_back(machine: Machine, tmp_path: Path) -> None:
    machine.certificate.ensure(NAMES, NOW)
    before = machine.content()
    certificate, key = somebodys(tmp_path / "theirs")
    machine.refuses = True
    with pytest.raises(TlsError, match="refuses"):
        machine.certificate.install(certificate, key, NOW)
    assert machine.content() == before
    assert len(list((machine.folder / "versions").iterdir())) == 1
    machine.refuses = False
    assert not machine.certificate.ensure(NAMES, NOW).changed


def test_what_cannot_work_is_refused_before_anything_changes(machine: Machine, tmp_path: Path) -> None:
    machine.certificate.ensure(NAMES, NOW)
    before = machine.content()
    certificate, key = somebodys(tmp_path / "one")
    _, other_key = somebodys(tmp_path / "two")
    with pytest.raises(TlsError, match="is not that of the first certificate"):
        machine.certificate.install(certificate, other_key, NOW)
    with pytest.raises(TlsError, match="expired"):
        machine.certificate.install(certificate, key, NOW + 91 * DAY)
    with pytest.raises(TlsError, match="no certificate"):
        machine.certificate.install(key, key, NOW)
    assert machine.content() == before and machine.deployed == 1


def test_a_folder_of_somebodys_own_is_not_replaced_by_a_link(machine: Machine, tmp_path: Path) -> None:
    certificate, key = somebodys(machine.folder / "live")
    with pytest.raises(TlsError, match="folder of somebody's own"):
        machine.certificate.install(certificate, key, NOW)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_and_addresses_are_told_apart() -> None:
    names = parsed_names(["GPU-1.Example.org.", "10.0.0.5", "fd00::5"])
    assert names.dns == {"gpu-1.example.org"} and {str(a) for a in names.addresses} == {"10.0.0.5", "fd00::5"}
    for wrong in ("a b", "-a.org", "a..b", "*", "x" * 64):
        with pytest.raises(TlsError, match="neither a DNS name nor an IP address"):
            parsed_names([wrong])


def test_the_machine_knows_its_own_names() -> None:
    names = local_names()
    assert {"localhost", INTERNAL_NAME} <= names.dns
    assert parsed_names(["127.0.0.1", "::1"]) <= names
