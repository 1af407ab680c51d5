"""The HTTP server: where it listens, whom it lets in, what it logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.config.declaration import setting

_NO_TOOLS = "Parsing tool calls is not built yet."


@dataclass(frozen=True)
class ServerSettings:
    """The HTTP server: where it listens, whom it lets in, what it logs."""

    host: str = setting(
        "127.0.0.1",
        purpose="Address to listen on. Only this machine by default, as the server is meant to stand behind NGINX, "
        "which brings TLS; 0.0.0.0 or :: listens on every interface, which needs API keys.",
        typical="127.0.0.1 behind a proxy, 0.0.0.0 in a private network.",
    )
    port: int = setting(
        8000,
        purpose="TCP port to listen on. 0 takes a free one and logs it.",
        typical="8000.",
        minimum=0,
        maximum=65535,
    )
    uds: str | None = setting(
        None,
        purpose="Path of a Unix socket to listen on instead of host and port.",
        throughput="Slightly less per-request time than TCP on the same machine.",
        typical="/run/pagebox/server.sock behind NGINX.",
        when_unset="TCP, at host and port.",
    )
    admin_socket: str | None = setting(
        None,
        purpose="Path of the Unix socket for administration: `pagebox drain`, and the spot watcher. Who may open it "
        "may drain the server; nothing else listens there.",
        typical="Unset under systemd; /tmp/pagebox-admin.sock for a server started by hand.",
        when_unset="The one that systemd listens at for the server, /run/pagebox/admin.sock; without systemd none.",
    )
    engine_socket: str | None = setting(
        None,
        purpose="Path of the Unix socket of an engine that runs by itself (`pagebox engine`); the server then starts "
        "none, and waits for it as long as it takes.",
        throughput="None: it is the same connection.",
        typical="/run/pagebox/engine-0/engine.sock, which the systemd unit of the server sets.",
        when_unset="The server starts an engine, which ends with it.",
    )
    api_server_count: int | Literal["auto"] = setting(
        "auto",
        purpose="Processes that speak HTTP, tokenize and detokenize in front of the one engine. More than one are "
        "started by a parent that accepts the connections and hands them out in turn, and starts a process again that "
        "ends. /metrics answers for all of them, and the limits of the queue hold for all of them together. auto is 1 "
        "without an NVIDIA GPU; with one it is a quarter of the processor's cores, 4 at most.",
        memory="About 130 MB of host memory each.",
        throughput="One process streams some 50,000 tokens a second at best. Several matter for small models on fast "
        "GPUs with hundreds of streams, and for long prompts in great number, which they tokenize side by side.",
        typical="auto.",
        minimum=1,
        maximum=64,
    )
    api_key: tuple[str, ...] = setting(
        (),
        purpose="Keys that clients may present as `Authorization: Bearer KEY`. Everything but the health probes needs "
        "one. Keys given as flags can be read by every user of the machine with `ps`; use the environment or a file "
        "there.",
        typical="One key per client, 32 random bytes each.",
        when_unset="Only those of api-keys-file; without both the server is for this machine alone.",
        secret=True,
    )
    api_keys_file: str | None = setting(
        None,
        purpose="Where the hashed keys are, each with a name, limits and an expiry: a YAML file, ssm:///NAME (SSM "
        "Parameter Store) or secretsmanager:///NAME. `pagebox keys` writes the file; docs/api-keys.md explains it. A "
        "file is read again when it changes, AWS every minute, both at SIGHUP. Keys of api-key are valid beside these.",
        throughput="Some 30 microseconds of a server process per request.",
        typical="/etc/pagebox/keys.yaml; ssm:///pagebox/keys for many machines.",
        when_unset="Only the keys of api-key.",
    )
    api_keys_pepper: str | None = setting(
        None,
        purpose="Where the pepper of the hashed keys is, the secret without which they verify nothing: a file, "
        "ssm:///NAME or secretsmanager:///NAME.",
        typical="Unset.",
        when_unset="systemd's credential api-keys-pepper, else the file of keys with the suffix .pepper.",
    )
    allow_unauthenticated: bool = setting(
        False,
        purpose="Listen beyond this machine without any API key: whoever reaches the server may use the model.",
        typical="Off; on where a proxy in front checks who calls.",
    )
    audit_log: str | None = setting(
        None,
        purpose="File that gets one JSON line for each request that needs a key and each change of the keys: who, "
        "what, how it ended. Never a key, never a prompt. It may be moved away while the server runs.",
        typical="/var/log/pagebox/audit.jsonl.",
        when_unset="No audit log.",
    )
    ssl_keyfile: str | None = setting(
        None,
        purpose="PEM file of the private key, to serve HTTPS without a proxy. Needs ssl-certfile.",
        typical="Unset: NGINX brings TLS.",
        when_unset="Plain HTTP.",
    )
    ssl_certfile: str | None = setting(
        None,
        purpose="PEM file of the certificate and its chain, to serve HTTPS without a proxy. Needs ssl-keyfile.",
        typical="Unset: NGINX brings TLS.",
        when_unset="Plain HTTP.",
    )
    root_path: str = setting(
        "",
        purpose="Path under which a proxy publishes the server, for example /llm; it appears in /openapi.json, and "
        "requests may come with or without it.",
        typical="Empty.",
        when_unset="The server stands at /.",
    )
    chat_template: str | None = setting(
        None,
        purpose="File with a Jinja chat template, or the template itself, to use instead of the model's own.",
        typical="Unset.",
        when_unset="The tokenizer's own template; without one, chat is refused.",
    )
    response_role: str = setting(
        "assistant",
        purpose="Role that chat replies carry.",
        typical="assistant.",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        purpose="Origins whose web pages may call the server from a browser (CORS); * allows all.",
        typical="Unset; the exact origin of a web application, https://chat.example.com.",
        when_unset="None: no CORS headers, browsers refuse other sites' pages.",
    )
    enable_metrics: bool = setting(
        True,
        purpose="Serve Prometheus metrics at /metrics.",
        throughput="Not measurable.",
        typical="On.",
    )
    disable_log_stats: bool = setting(
        False,
        purpose="Leave out the periodic log line with throughput, running and waiting requests and cache usage.",
        typical="Off.",
    )
    disable_log_requests: bool = setting(
        False,
        purpose="Leave out the one log line that every request gets when it ends (never with its prompt, unless "
        "max-log-len).",
        throughput="Matters above some thousand requests a second.",
        typical="Off.",
    )
    max_log_len: int = setting(
        0,
        purpose="Characters of the prompt that a request's log line shows. 0: none, so that nothing private reaches "
        "the log.",
        typical="0; 200 while debugging.",
        minimum=0,
    )
    log_format: Literal["text", "json"] = setting(
        "text",
        purpose="Log lines for people, or one JSON object a line for machines.",
        typical="text at a terminal, json into a log collector.",
    )
    drain_timeout: float = setting(
        60.0,
        purpose="Seconds that running requests get to finish after SIGTERM or a drain; what is left then ends with an "
        "error that says so. New requests are refused from the start.",
        typical="60; below systemd's TimeoutStopSec, and below 120 on spot instances.",
        minimum=0,
    )
    request_timeout: float = setting(
        3600.0,
        purpose="Seconds that one request may take in all, queue included; then it ends with an error. 0: no limit. A "
        "backstop: a client that closes its connection ends its request at once anyway.",
        memory="Bounds how long a forgotten request holds its KV blocks.",
        typical="600 to 3600.",
        minimum=0,
    )
    max_request_bytes: int = setting(
        16 * 1024**2,
        purpose="Largest request body; a larger one is a 413.",
        memory="Up to this much per request while it is parsed.",
        typical="16MiB: about three million tokens of English text.",
        minimum=1024,
        unit="bytes",
    )
    enable_auto_tool_choice: bool = setting(
        False,
        purpose="Let the model decide by itself to call tools. Needs tool-call-parser.",
        typical="Off.",
        not_built=_NO_TOOLS,
    )
    tool_call_parser: str | None = setting(
        None,
        purpose="How this model writes tool calls.",
        typical="Unset.",
        when_unset="Tool calls are not parsed.",
        not_built=_NO_TOOLS,
    )
    reasoning_parser: str | None = setting(
        None,
        purpose="How this model marks its reasoning, so that replies carry it apart from the answer.",
        typical="Unset.",
        when_unset="Reasoning stays in the text.",
        not_built="Parsing reasoning is not built yet.",
    )

    @property
    def has_keys(self) -> bool:
        """Whether callers need one."""
        return bool(self.api_key) or self.api_keys_file is not None
