"""NGINX's configuration as text, and what its own checker says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from appliance.config import ConfigError, Settings
from appliance.front.description import Front, Layout, balancer_front, machine_front
from appliance.front.local_nginx import LocalNginx, nginx_from_version_text
from appliance.front.render import render
from tests.integration.server.harness import settings_with
from tests.support.nginx import check_config, layout_in, needs_nginx, write_config

MACHINES = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]


def keyed(**options: Any) -> Settings:
    return settings_with(api_keys_file="/etc/pagebox/keys.yaml", **options)


def rendered(front: Front, nginx: LocalNginx | None = None, layout: Layout | None = None) -> str:
    return render(front, layout or Layout(), nginx or LocalNginx())


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^\s*{name} (.*);$", text, re.MULTILINE)


def test_the_limits_are_those_of_the_settings() -> None:
    settings = keyed(port=1, max_request_bytes=5000, request_timeout=120.0, max_num_seqs=8, max_num_queued_reqs=32)
    text = rendered(machine_front(settings, key_rate=10))
    assert directives(text, "client_max_body_size")[0] == "5000"
    assert directives(text, "proxy_read_timeout") == ["130s"]  # the server's own timeout comes first
    assert directives(text, "worker_shutdown_timeout") == ["150s"]  # a reload does not cut the longest stream
    assert directives(text, "limit_conn") == ["key_concurrency 40", "address_concurrency 160"]
    assert "rate=10r/s" in text and directives(text, "limit_req")[0] == "zone=key_rate burst=40 nodelay"


def test_without_a_limit_of_time_or_queue_nothing_is_cut() -> None:
    text = rendered(machine_front(keyed(port=1, request_timeout=0.0, max_num_queued_reqs=0)))
    assert directives(text, "proxy_read_timeout") == ["86400s"]
    assert directives(text, "worker_shutdown_timeout") == []
    assert directives(text, "limit_conn") == []


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"uds": "/run/pagebox/server.sock"}, "unix:/run/pagebox/server.sock"),
        ({"port": 8000}, "127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 9000}, "127.0.0.1:9000"),
        ({"host": "::", "port": 9000}, "[::1]:9000"),
    ],
)
def test_the_upstream_is_where_the_server_listens(options: dict[str, object], address: str) -> None:
    assert directives(rendered(machine_front(keyed(**options))), "server") == [f'"{address}" max_fails=0']


@pytest.mark.parametrize(
    ("options", "part"),
    [({"port": 0}, "other than 0"), ({"port": 1, "ssl_certfile": "c", "ssl_keyfile": "k"}, "leave ssl-certfile")],
)
def test_a_server_that_cannot_be_reached_is_refused(options: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        machine_front(keyed(**options))


def test_a_server_without_keys_is_not_opened_to_everybody() -> None:
    with pytest.raises(ConfigError, match="without API keys"):
        machine_front(settings_with(uds="/run/pagebox/server.sock"))
    machine_front(settings_with(uds="/run/pagebox/server.sock", allow_unauthenticated=True))


def test_only_the_api_and_two_probes_are_public_also_below_a_root_path() -> None:
    text = rendered(machine_front(keyed(port=1, root_path="/llm")))
    public = re.findall(r"location (= )?\"(.*)\" \{", text)
    assert [path for _, path in public] == [
        *("/v1/", "/health", "/readyz"),
        *("/llm/v1/", "/llm/health", "/llm/readyz"),
    ]
    assert "metrics" not in "".join(directives(text, "location")) and "/admin" not in text


def test_a_closed_connection_is_made_again_on_one_machine_and_a_refusal_goes_to_another_once_on_many() -> None:
    assert directives(rendered(machine_front(keyed(port=8000))), "proxy_next_upstream") == ["error non_idempotent"]
    text = rendered(balancer_front(Settings(), MACHINES))
    assert directives(text, "proxy_next_upstream") == ["error timeout http_503 non_idempotent"]
    assert directives(text, "proxy_next_upstream_tries") == ["2"]


def test_a_balancer_sends_to_the_least_busy_or_by_a_header() -> None:
    least = rendered(balancer_front(Settings(), MACHINES))
    assert "least_conn;" in least and "hash " not in least
    hashed = rendered(balancer_front(Settings(), MACHINES, affinity_header="X-Session-Id"))
    assert "least_conn" not in hashed
    assert "hash $pagebox_affinity consistent;" in hashed and "default $http_x_session_id;" in hashed
    for text in (least, hashed):
        method = text.index("least_conn;" if text is least else "hash $")
        assert text.index("zone pagebox ") < method < text.index("keepalive 128")


@pytest.mark.parametrize(
    ("machines", "more", "part"),
    [
        ([], {}, "needs machines"),
        (["10.0.0.1:8000"], {}, "is not a machine's URL"),
        (["http://10.0.0.1:8000/v1"], {}, "is not a machine's URL"),
        (["http://a;b:80"], {}, "is not a machine's URL"),
        (["http://a:80", "https://b"], {}, "all be http://"),
        (["https://a"], {}, "--upstream-ca"),
        (["http://a"], {"upstream_ca": Path("x")}, "is for https://"),
        (["http://a"], {"affinity_header": "X Y;"}, "not the name of a header"),
        (["http://a"], {"trusted_proxies": ["10.0.0.1/8"]}, "host bits set"),
        (["http://a"], {"key_rate": 0}, "at least 1"),
    ],
)
def test_wrong_descriptions_are_one_sentence(machines: list[str], more: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)):
        balancer_front(Settings(), machines, **more)  # type: ignore[arg-type]


def test_a_value_that_nginx_would_read_as_a_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot stand in NGINX's configuration"):
        rendered(machine_front(keyed(uds="/run/$host/s.sock")))
    assert r'"unix:/run/a\"b;/s"' in rendered(machine_front(keyed(uds='/run/a"b;/s')))


def test_each_nginx_gets_what_it_understands() -> None:
    old = nginx_from_version_text(
        "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.5.1 7 Apr (running with OpenSSL 3.0.19 27 Jan)", ipv6=True
    )
    assert (old.version, old.openssl) == ((1, 22, 1), (3, 0, 19))
    new = nginx_from_version_text("nginx version: nginx/1.29.0\nbuilt with OpenSSL 3.5.1 1 Jul 2025", ipv6=False)
    front = machine_front(keyed(port=8000))
    assert "ssl http2 " in rendered(front, old) and "http2 on;" not in rendered(front, old)
    assert "http2 on;" in rendered(front, new) and "ssl http2 " not in rendered(front, new)
    assert directives(rendered(front, old), "ssl_ecdh_curve") == ["X25519:prime256v1:secp384r1"]
    assert directives(rendered(front, new), "ssl_ecdh_curve") == ["X25519MLKEM768:X25519:prime256v1:secp384r1"]
    assert "[::]" in rendered(front, old) and "[::]" not in rendered(front, new)
    assert nginx_from_version_text("", ipv6=True) == LocalNginx()


@needs_nginx
@pytest.mark.parametrize(
    "front",
    [
        machine_front(keyed(uds="/run/pagebox/server.sock", root_path="/llm"), trusted_proxies=["10.0.0.0/8"]),
        machine_front(keyed(request_timeout=0.0, max_num_queued_reqs=0, host="::", port=8000)),
        balancer_front(Settings(), MACHINES),
        balancer_front(Settings(), MACHINES, affinity_header="X-Session-Id", trusted_proxies=["fd00::/8", "10.1.2.3"]),
    ],
    ids=["machine", "machine without limits", "least busy", "by header"],
)
def test_nginx_has_nothing_to_say_against_it(front: Front, tmp_path: Path) -> None:
    assert check_config(write_config(front, layout_in(tmp_path), tmp_path)) == ""


@needs_nginx
def test_nor_against_machines_that_are_reached_by_tls(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    front = balancer_front(Settings(), ["https://10.0.0.1", "https://10.0.0.2"], upstream_ca=layout.certificate)
    assert check_config(write_config(front, layout, tmp_path)) == ""
    assert directives((tmp_path / "nginx.conf").read_text(), "proxy_ssl_verify") == ["on"]


@needs_nginx
def test_the_checker_notices_a_mistake(tmp_path: Path) -> None:
    config = write_config(machine_front(keyed(port=8000)), layout_in(tmp_path), tmp_path)
    config.write_text(config.read_text().replace("proxy_buffering off;", "proxy_buffering of;"))
    assert 'invalid value "of"' in check_config(config)


def test_the_command_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nginx", "render", "--uds", "/run/pagebox/server.sock", "--https-port", "8443", "--api-key", "k"]) == 0
    out = capsys.readouterr().out
    assert '"unix:/run/pagebox/server.sock"' in out and "listen 8443 default_server ssl" in out
    assert directives(out, "ssl_certificate") == ['"/var/lib/pagebox/tls/live/fullchain.pem"']


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nginx.conf"
    assert main(["nginx", "render", "--kind", "balancer", "--upstream", *MACHINES, "--output", str(file)]) == 0
    before = file.read_text()
    assert "least_conn;" in before and oct(file.stat().st_mode & 0o777) == "0o644"
    assert main(["nginx", "render", "--kind", "balancer", "--output", str(file)]) == 2
    assert main(["nginx", "render", "--upstream", *MACHINES, "--output", str(file)]) == 2
    assert "is for --kind balancer" in capsys.readouterr().err
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]
    assert main(["nginx", "render", "--allow-unauthenticated", "--output", str(tmp_path / "missing" / "file")]) == 1
