"""`pagebox bench serve`: load on a running OpenAI-compatible server, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.bench_options import json_object, non_negative, percentages, positive, rate, shape_arguments

if TYPE_CHECKING:
    import aiohttp

    from appliance.bench.client import Endpoint, Target
    from appliance.bench.vocabulary import Vocabulary
    from appliance.bench.workload import Prompt

_PROMPTS = 100
_SHARED_PREFIX = 1024
_ENDPOINTS: dict[str, Endpoint] = {
    "completions": "completions",
    "chat": "chat",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_server_arguments(parser)
    _add_load_arguments(parser)
    add = parser.add_argument
    add(
        "--metric-percentiles",
        "--percentiles",
        dest="percentiles",
        type=percentages,
        default=[50.0, 90.0, 99.0],
        metavar="P,P",
        help="of each latency (default: 50,90,99)",
    )
    add("--result-filename", "--save", dest="save", type=Path, metavar="FILE", help="write the result there, as JSON")
    add("--json", action="store_true", help="print a JSON object")


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="the server (default: %(default)s)")
    add("--model", metavar="NAME", help="the model to ask for (default: the server's first)")
    add("--api-key", metavar="KEY", help="default: the environment's PAGEBOX_API_KEY, else OPENAI_API_KEY")
    add("--endpoint", choices=list(_ENDPOINTS), default="completions", help="what to call (default: %(default)s)")
    add("--tokenizer", metavar="DIR", help="counts prompt tokens (default: the server's /tokenize does)")
    add("--ignore-eos", action="store_true", help="always generate the whole output length (beyond OpenAI's API)")
    add("--extra-body", type=json_object, default={}, metavar="JSON", help="fields to add to every request")


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--dataset-name",
        "--dataset",
        dest="dataset",
        choices=("random", "shared-prefix", "text"),
        default="random",
        help="random words; random words after a prefix that all share; the prompts of a file (default: %(default)s)",
    )
    add("--dataset-path", type=Path, metavar="FILE", help="for text: a prompt a line, or .jsonl with a field prompt")
    shape_arguments(parser, prefix_default=f"0; {_SHARED_PREFIX} for shared-prefix")
    add("--num-prompts", type=positive, metavar="N", help=f"requests (default: {_PROMPTS}, or all of a file)")
    add("--max-concurrency", type=positive, metavar="N", help="requests under way at most (default: no limit)")
    add(
        "--client-processes",
        type=positive,
        metavar="N",
        help="share the requests and --max-concurrency among N processes (default: one for each 32 requests under way, "
        "on half of the cores at most)",
    )
    add("--request-rate", type=rate, default=math.inf, metavar="R", help="requests a second (default: all at once)")
    add(
        "--burstiness",
        type=rate,
        default=1.0,
        metavar="B",
        help="of arrivals at a rate: 1 is a Poisson process, less comes in bursts, more is more even (default: 1)",
    )
    add("--seed", type=int, metavar="N", help="of prompts and arrivals (default: another one each time)")
    add("--num-warmups", "--warmup", type=non_negative, default=0, metavar="N", help="requests before those measured")


def run(options: argparse.Namespace) -> int:
    if mistake := _mistake(options):
        print(f"pagebox bench serve: {mistake}.", file=sys.stderr)
        return 2
    import uvloop

    from appliance.bench.client_processes import ClientDied
    from appliance.bench.preflight import PreflightError
    from appliance.bench.vocabulary import VocabularyError
    from appliance.bench.workload import WorkloadError
    from appliance.text.tokenizer_files import TokenizerLoadError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(options))
    except (ClientDied, PreflightError, VocabularyError, WorkloadError, TokenizerLoadError) as error:
        text = str(error)
        print(f"pagebox bench serve: {text}{'' if text.endswith(('.', '?')) else '.'}", file=sys.stderr)
        return 1


def _mistake(options: argparse.Namespace) -> str | None:
    if (options.dataset == "text") != (options.dataset_path is not None):
        return "--dataset text and --dataset-path FILE belong together"
    if options.save is not None and not options.save.parent.is_dir():
        return f"--save: there is no folder {options.save.parent}"
    if math.isinf(options.burstiness):
        return "--burstiness must be a finite number"
    return None


async def _measure(options: argparse.Namespace) -> int:
    from appliance.bench import report
    from appliance.bench.client import Target, new_session
    from appliance.bench.client_processes import client_processes, run_load_in_processes
    from appliance.bench.load import run_load
    from appliance.bench.preflight import PreflightError, find_model
    from appliance.bench.progress import Progress
    from appliance.bench.statistics import summarize
    from appliance.bench.workload import departures

    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    rng = random.Random(seed)
    key = options.api_key or os.environ.get("PAGEBOX_API_KEY") or os.environ.get("OPENAI_API_KEY")
    base_url = options.base_url.rstrip("/").removesuffix("/v1")
    target = Target(base_url, options.model, _ENDPOINTS[options.endpoint], key, options.ignore_eos, options.extra_body)
    async with new_session(target) as session:
        target = dataclasses.replace(target, model=await find_model(session, base_url, options.model))
        vocabulary = None if options.dataset == "text" else await _vocabulary(options, session, target)
        warm_ups = _prompts(options, options.num_warmups, vocabulary, rng)
        prompts = _prompts(options, options.num_prompts, vocabulary, rng)
        times = departures(len(prompts), options.request_rate, options.burstiness, rng)
        warmed = await run_load(session, target, warm_ups, [0.0] * len(warm_ups), options.max_concurrency)
        for record in warmed:
            if record.error is not None:
                raise PreflightError(f"a warm-up request failed with {record.error}: {record.error_detail}")
        processes = options.client_processes or client_processes(len(prompts), options.max_concurrency)
        with Progress(len(prompts)) as progress:
            load = (target, prompts, times, options.max_concurrency, progress.finished)
            records = await (run_load(session, *load) if processes == 1 else run_load_in_processes(processes, *load))
    summary = summarize(records)
    setup = _setup(options, target, seed, len(prompts), processes)
    result = {**setup, **report.as_json(summary, options.percentiles)}
    text = json.dumps(result) if options.json else f"Seed {seed}\n{report.as_text(summary, options.percentiles)}"
    print(text)
    if options.save is not None and not _saved(options.save, result):
        return 1
    return 1 if summary.failed else 0


async def _vocabulary(options: argparse.Namespace, session: aiohttp.ClientSession, target: Target) -> Vocabulary | None:
    """The words of random texts; None when only token ids can have an exact length."""
    from appliance.bench.counters import LocalCounter, ServerCounter
    from appliance.bench.vocabulary import Vocabulary, VocabularyError
    from appliance.text.tokenizer import Tokenizer

    if options.tokenizer is not None:
        return await Vocabulary.of(LocalCounter(Tokenizer.load(options.tokenizer)))
    try:
        return await Vocabulary.of(ServerCounter(session, target.base_url, target.model or ""))
    except VocabularyError as error:
        if target.endpoint == "chat":
            raise VocabularyError(f"{error}; name the model's tokenizer folder with --tokenizer") from error
        print(f"{error}; sending prompts as token ids, not as text.", file=sys.stderr)
        return None


def _prompts(
    options: argparse.Namespace, count: int | None, vocabulary: Vocabulary | None, rng: random.Random
) -> list[Prompt]:
    """`count` prompts, or the dataset's default number of them; warm-ups of a file are its first ones."""
    from appliance.bench.workload import Shape, prompts_of_file, random_texts, random_token_ids

    if options.dataset == "text":
        return prompts_of_file(options.dataset_path, options.output_len, count)
    prefix = options.prefix_len
    if prefix is None:
        prefix = _SHARED_PREFIX if options.dataset == "shared-prefix" else 0
    shape = Shape(prefix, options.input_len, options.output_len)
    number = _PROMPTS if count is None else count
    if vocabulary is None:
        return random_token_ids(shape, number, rng)
    return random_texts(vocabulary, shape, number, rng, chat=_ENDPOINTS[options.endpoint] == "chat")


def _setup(options: argparse.Namespace, target: Target, seed: int, num_prompts: int, processes: int) -> dict[str, Any]:
    """What was measured, for whoever reads the result later. A rate without limit is "inf", as JSON has no infinity."""
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "base_url": target.base_url,
        "endpoint": target.endpoint,
        "model_id": target.model,
        "dataset": options.dataset,
        "input_len": None if options.dataset == "text" else options.input_len,
        "output_len": options.output_len,
        "num_prompts": num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        "client_processes": processes,
        "ignore_eos": options.ignore_eos,
        "seed": seed,
    }


def _saved(file: Path, result: dict[str, Any]) -> bool:
    try:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"pagebox bench serve: cannot write {file}: {error.strerror}.", file=sys.stderr)
        return False
    return True
