"""Certificates that the machine signs itself, and how they are told from all others."""

from __future__ import annotations

import datetime
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.tls.names import Names

# Clients refuse more than 398 days, and the TLS guidelines advise against more than 366.
LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)
# A machine's clock may be behind its clients' until it has been set.
CLOCK_SKEW = datetime.timedelta(hours=1)
# The mark by which ours are known.
_ORGANIZATION = "pagebox self-signed"


def new_key() -> ec.EllipticCurvePrivateKey:
    """NIST P-256: every client knows it, and a handshake costs a tenth of RSA's."""
    return ec.generate_private_key(ec.SECP256R1())


def self_signed(key: ec.EllipticCurvePrivateKey, names: Names, now: datetime.datetime) -> x509.Certificate:
    """A certificate of a server, no authority: whoever trusts it trusts this machine alone. `now` has a time zone."""
    common_name = min(names.dns - {"localhost"}, key=lambda name: (name.endswith(".internal"), name), default="pagebox")
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),  # the longest that X.520 allows
        ]
    )
    alternatives = [
        *map(x509.DNSName, sorted(names.dns)),
        *map(x509.IPAddress, sorted(names.addresses, key=lambda address: (address.version, int(address)))),
    ]
    usage = x509.KeyUsage(
        digital_signature=True,
        **dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        ),
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now - CLOCK_SKEW + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def is_ours(certificate: x509.Certificate) -> bool:
    """Whether `self_signed` made it: only such a one may be replaced without being asked."""
    organizations = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if [attribute.value for attribute in organizations] != [_ORGANIZATION]:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def names_of(certificate: x509.Certificate) -> Names:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Names(frozenset(), frozenset())
    addresses = [a for a in found.get_values_for_type(x509.IPAddress) if isinstance(a, IPv4Address | IPv6Address)]
    return Names(frozenset(name.lower() for name in found.get_values_for_type(x509.DNSName)), frozenset(addresses))
