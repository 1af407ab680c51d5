"""`pagebox trace PROMPT --model MODEL`: the life of one request as it happens, from intake to cleanup."""

from __future__ import annotations

import argparse
import json
import sys
import time

from appliance.cli.trace_lines import TraceLines
from appliance.cli.trace_markdown import page
from appliance.config import ConfigError, Settings, add_settings_arguments, require_model, resolve
from appliance.protocol.sampling_params import ParameterError, SamplingParams
from appliance.protocol.wire import AddRequest, TraceEvent

_REQUEST_ID = "traced"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser, model_argument=False)
    parser.usage = "%(prog)s PROMPT --model MODEL [FLAGS]"
    parser.add_argument("prompt", metavar="PROMPT", help="the text to complete")
    parser.add_argument("--max-tokens", type=int, default=8, help="tokens to generate (default: 8)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print each event as a JSON object on a line")
    form.add_argument("--markdown", action="store_true", help="print a page that explains each event, at the end")


def run(options: argparse.Namespace) -> int:
    from appliance.engine.startup_errors import StartupError
    from appliance.text.tokenizer_files import TokenizerLoadError

    resolved = resolve(options)
    require_model(resolved)
    for notice in resolved.notices:
        print(notice, file=sys.stderr)
    params = SamplingParams(max_tokens=options.max_tokens, temperature=0.0, seed=0)
    try:
        params.validate()
        printer = _Printer(as_json=options.json, at_once=not options.markdown)
        code = _trace(resolved.settings, options.prompt, params, printer)
    except ParameterError as error:
        raise ConfigError(f"{error}.") from error
    except (StartupError, TokenizerLoadError) as error:
        print(f"pagebox trace: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, StartupError) else 1
    if options.markdown and printer.lines is not None:
        print(page(resolved, printer.events, printer.lines, options.max_tokens))
    return code


class _Printer:
    """Keeps each event, and prints it as it happens unless a page is made of all at the end."""

    def __init__(self, *, as_json: bool, at_once: bool) -> None:
        self._as_json = as_json
        self._at_once = at_once
        self.events: list[TraceEvent] = []
        self.lines: TraceLines | None = None  # set before the first event of the request

    def __call__(self, event: TraceEvent) -> None:
        self.events.append(event)
        if not self._at_once:
            return
        if self._as_json or self.lines is None:
            line = json.dumps({"time": event.time, "event": event.event, **event.fields}, ensure_ascii=False)
        else:
            line = self.lines.line(event)
        print(line, flush=True)

    def note(self, name: str, **fields: int | float | str | list[int]) -> None:
        """An event outside the engine core."""
        self(TraceEvent(_REQUEST_ID, time.time(), name, fields))


def _trace(settings: Settings, prompt: str, params: SamplingParams, printer: _Printer) -> int:
    """Run the request through an engine core in this process and print every event; returns the exit code."""
    from appliance.engine.llm_progress import LoadingBar
    from appliance.engine.startup import build_core
    from appliance.engine.warm_up import warm_up
    from appliance.text.load_tokenizer import load_tokenizer
    from appliance.text.sequence import SequenceStream

    tokenizer = load_tokenizer(settings)
    loading = LoadingBar()
    try:
        core, ready = build_core(settings, loading, printer)
        warm_up(core)  # its time would be part of the first step's otherwise
    finally:
        loading.close()

    began = time.time()
    printer.lines = TraceLines(began, ready.block_size, tokenizer.token_text)
    printer.note("intake", model=ready.model, prompt=prompt)
    token_ids = tokenizer.encode(prompt)
    printer.note("tokenized", token_ids=token_ids)
    stream = SequenceStream(tokenizer, token_ids, params)
    refusal = core.add(AddRequest(_REQUEST_ID, token_ids, params, arrival_time=began, trace=True))
    if refusal is not None:
        printer.note("refused", reason=refusal.error or "")
        return 1
    failed = False
    while core.has_work():
        for delta in core.step():
            part = stream.push(delta)
            printer.note("streamed", text="" if part is None else part.text)
            if delta.error is not None:
                failed = True
                printer.note("error", reason=delta.error)
    stats = core.stats()
    printer.note("cleanup", kv_cache_usage=stats.kv_cache_usage, running=stats.num_running, waiting=stats.num_waiting)
    return 1 if failed else 0
