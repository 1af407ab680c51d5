"""A certificate in words, for people and scripts."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from appliance.tls.self_signed import is_ours, names_of


def described(certificate: x509.Certificate, now: datetime.datetime) -> dict[str, str | int | list[str]]:
    names = names_of(certificate)
    return {
        "kind": "self-signed by this software" if is_ours(certificate) else "installed by somebody",
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": [*sorted(names.dns), *sorted(map(str, names.addresses))],
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
        "days_left": (certificate.not_valid_after_utc - now).days,
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }
