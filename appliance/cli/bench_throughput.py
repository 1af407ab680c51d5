"""`pagebox bench throughput`: how much the engine alone does, with all prompts waiting from the beginning."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from appliance.cli.bench_options import positive, shape_arguments
from appliance.config import Settings, add_settings_arguments, require_model, resolve

if TYPE_CHECKING:
    from appliance.bench.offline import Throughput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser, model_argument=False)
    parser.usage = "%(prog)s --model MODEL [FLAGS]"
    shape_arguments(parser, prefix_default="0")
    parser.add_argument("--num-prompts", type=positive, default=100, metavar="N", help="prompts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(options: argparse.Namespace) -> int:
    from appliance.bench.workload import WorkloadError
    from appliance.engine.startup_errors import StartupError

    resolved = resolve(options)
    require_model(resolved)
    for notice in resolved.notices:
        print(notice, file=sys.stderr)
    try:
        result = _measured(resolved.settings, options)
    except (StartupError, WorkloadError, RuntimeError) as error:
        print(f"pagebox bench throughput: {str(error).rstrip('.')}.", file=sys.stderr)
        return error.exit_code if isinstance(error, StartupError) else 1
    numbers = result.as_json()
    print(json.dumps(numbers) if options.json else _as_text(numbers))
    return 1 if result.failures else 0


def _measured(settings: Settings, options: argparse.Namespace) -> Throughput:
    from appliance.bench.offline import measure, random_requests
    from appliance.bench.progress import Progress
    from appliance.bench.workload import Shape
    from appliance.engine.llm_progress import LoadingBar
    from appliance.engine.startup import build_core
    from appliance.engine.warm_up import warm_up

    loading = LoadingBar()
    try:
        core, ready = build_core(settings, loading)
        warm_up(core)
    finally:
        loading.close()
    shape = Shape(options.prefix_len or 0, options.input_len, options.output_len)
    requests = random_requests(ready, shape, options.num_prompts, settings.model.seed or 0)
    with Progress(len(requests)) as progress:
        return measure(core, requests, progress)


def _as_text(numbers: dict[str, Any]) -> str:
    def line(title: str, value: str) -> str:
        return f"{title:<26}{value}"

    lines = [
        line("Prompts", f"{numbers['num_requests']:,}, {numbers['failed']:,} failed"),
        *(f"    {error}" for error in numbers["errors"]),
        line("Duration", f"{numbers['elapsed_time']:.2f} s"),
        line("Prompt tokens", f"{numbers['total_input_tokens']:,}, of which {numbers['total_cached_tokens']:,} cached"),
        line("Output tokens", f"{numbers['total_output_tokens']:,}"),
        "",
        line("Prompts", f"{numbers['requests_per_second']:.2f} per second"),
        line("Prompt tokens", f"{numbers['input_tokens_per_second']:.1f} per second"),
        line("Output tokens", f"{numbers['output_tokens_per_second']:.1f} per second"),
        line("All tokens", f"{numbers['tokens_per_second']:.1f} per second"),
        "",
        line("Steps", f"{numbers['steps']:,}, {numbers['preemptions']:,} preemptions"),
    ]
    if numbers["steps"]:
        lines += [
            line("Mean step", f"{numbers['mean_step_ms']:.2f} ms"),
            line("Mean requests in a step", f"{numbers['mean_requests_per_step']:.1f}"),
            line("Mean tokens in a step", f"{numbers['mean_tokens_per_step']:.1f}"),
        ]
    return "\n".join(lines)
