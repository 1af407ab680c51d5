"""What the documents say exists."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from appliance.cli.main import COMMANDS, CommandModule
from appliance.cli.parser import Parser
from appliance.config import Settings
from appliance.config.catalog import catalog
from appliance.engine.client import EngineClient
from appliance.protocol.openai.chat import ChatCompletionRequest
from appliance.protocol.openai.common import GenerationRequest, StreamOptions
from appliance.protocol.openai.completions import CompletionRequest
from appliance.protocol.openai.fields import HARMLESS, UNSUPPORTED
from appliance.server.limits import TimeLimits
from appliance.server.metrics import Metrics
from appliance.server.routes.table import routes
from tests.unit.project.source_names import FOLDERS, ROOT, classes, exists, members, modules
from tests.unit.project.test_import_direction import MAY_IMPORT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
GENERATED = {"configuration.md"}  # from the declarations themselves
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
TOP_FOLDERS = ("appliance/", "kernels/", "docs/", "tests/", "packaging/", "nginx/")
OPENAI_FIELDS = {
    *(
        "model",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
    ),
    *("stop", "stream", "stream_options", "logprobs", "top_logprobs", "max_completion_tokens", "messages", "prompt"),
    "best_of",
}

on_every_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_spans(page: Path) -> list[str]:
    """What stands in single backticks, outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]


def console_lines(page: Path) -> list[str]:
    return [
        line[2:]
        for block in re.findall(r"^```console\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def section(page: str, title: str) -> str:
    """The text below a heading, up to the next heading."""
    [found] = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text_of(ROOT / "docs" / page), re.M | re.S)
    return str(found)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


@cache
def source_text() -> str:
    files = [file for folder in FOLDERS.values() for file in folder.rglob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def parser_flags() -> dict[str, set[str]]:
    """The flags of every command."""
    found = {}
    for command in COMMANDS:
        parser = Parser(prog=command.name)
        module: CommandModule = importlib.import_module(command.module)  # type: ignore[assignment]
        module.add_arguments(parser)
        found[command.name] = set(flags_of(parser))
    return found


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from flags_of(child)


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(other), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target


def test_the_readme_leads_to_every_page() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text_of(ROOT / "README.md"), page.name


# ---- names of the source ---------------------------------------------------------------------------------------------


@on_every_page
def test_every_full_name_is_in_the_source(page: Path) -> None:
    names = set(re.findall(r"\b(appliance(?:_kernels)?(?:\.\w+)+)", text_of(page)))
    assert [name for name in sorted(names) if not exists(name)] == []


def test_a_name_that_is_not_in_the_source_is_noticed() -> None:
    assert exists("appliance.engine.scheduler.Scheduler.schedule")
    assert exists("appliance_kernels.ops.paged_attention")
    assert not exists("appliance.engine.scheduler.Scheduler.reschedule")
    assert not exists("appliance.engine.planner")


@on_every_page
def test_every_class_member_and_module_function_is_in_the_source(page: Path) -> None:
    by_stem = {name.rpartition(".")[2]: name for name in modules()}
    for span in code_spans(page):
        match = re.match(r"^(\w+)\.(\w+)(?:\(.*\))?$", span)
        if match is None:
            continue
        owner, member = match.groups()
        if owner in classes():
            assert member in classes()[owner], f"{page.name}: {span}"
        elif owner in by_stem and member != "py":
            assert member in members(by_stem[owner]), f"{page.name}: {span}"


@on_every_page
def test_every_bare_name_is_a_word_of_the_source(page: Path) -> None:
    words = set(re.findall(r"\w+", source_text()))
    names = {span for span in code_spans(page) if re.match(r"^_?[A-Za-z]+(_[A-Za-z]+)+$|^[A-Z][a-z]+[A-Z]\w+$", span)}
    assert names <= words


@on_every_page
def test_every_file_is_there(page: Path) -> None:
    paths = [word for span in code_spans(page) for word in span.split() if word.startswith(TOP_FOLDERS)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_module_map_is_the_one_that_is_enforced() -> None:
    rows = re.findall(r"^\| `(?:appliance/)?(\w+)/` \|.*\| (.*) \|$", section("architecture.md", "Module map"), re.M)
    told = {package: names_in(allowed) for package, allowed in rows}
    beside = {"log_format", "version"}
    exceptions = {"server": {"client", "supervisor"}, "runner": {"engine"}}
    assert told == {
        package: allowed - beside | exceptions.get(package, set())
        for package, allowed in MAY_IMPORT.items()
        if package not in beside
    }


# ---- commands and settings -------------------------------------------------------------------------------------------


@on_every_page
def test_every_command_is_one_and_takes_the_flags_it_is_given(page: Path) -> None:
    commands = {command.name for command in COMMANDS} | {"", "-"}
    for line in [*code_spans(page), *console_lines(page)]:
        match = re.match(r"^(?:\.venv/bin/)?pagebox ((?:[a-z][a-z-]* ?){0,2})", line)
        if match is None:
            continue
        words = match[1].split()
        named = " ".join(words) if " ".join(words) in commands else " ".join(words[:1])
        assert named in commands, f"{page.name}: {line}"
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", line):
            known = parser_flags().get(named, {"--help", "--version"}) | {"--help"}
            assert flag in known, f"{page.name}: {line}"


@on_every_page
def test_every_flag_exists(page: Path) -> None:
    known = set[str]().union(*parser_flags().values(), {"--version", "--help"})
    sources = source_text() + "".join(file.read_text() for file in (ROOT / "tests" / "benchmarks").glob("*.py"))
    for span in code_spans(page):
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", span):
            assert flag in known or f'"{flag}"' in sources, f"{page.name}: {flag}"


@on_every_page
def test_every_name_with_hyphens_is_a_setting(page: Path) -> None:
    settings = {setting.title for setting in catalog().values()}
    names = {span for span in code_spans(page) if re.match(r"^[a-z]+(-[a-z]+)+$", span)}
    assert names <= settings


@on_every_page
def test_every_variable_is_read(page: Path) -> None:
    variables = {setting.variable for setting in catalog().values()} | {"PAGEBOX_CONFIG"}
    assert set(re.findall(r"\bPAGEBOX_[A-Z_]+", text_of(page))) <= variables


@on_every_page
def test_every_make_target_is_in_the_makefile(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for line in [*code_spans(page), *console_lines(page)]:
        match = re.match(r"^make ([a-z]+)", line)
        assert match is None or match[1] in targets, f"{page.name}: {line}"


# ---- the API ---------------------------------------------------------------------------------------------------------


def test_every_route_is_listed_with_who_may_call_it() -> None:
    rows = re.findall(r"^\| `(GET|POST) (\S+)` \| (anyone|key holder) \|", section("api.md", "Routes"), re.MULTILINE)
    table = {(r.method, re.sub(r":[^}]*", "", r.path), r.access.value.replace("_", " ")) for r in routes(Settings())}
    assert set(rows) == table


def test_every_request_field_beyond_openais_is_listed() -> None:
    told = names_in(section("api.md", "Request fields beyond OpenAI's"))
    structs = (GenerationRequest, CompletionRequest, ChatCompletionRequest, StreamOptions)
    known = {name for struct in structs for name in struct.__struct_fields__}
    assert known - OPENAI_FIELDS - {"include_obfuscation"} <= told
    assert told <= known | {"stream", "priority"}


def test_the_fields_without_effect_and_those_refused_are_listed() -> None:
    assert names_in(section("api.md", "Fields that change nothing")) == HARMLESS
    refused = section("api.md", "Fields that are refused").partition("Every other field")[0]
    assert names_in(refused) - {"null"} == UNSUPPORTED.keys()


def test_every_error_code_is_one_that_is_sent() -> None:
    codes = names_in(section("api.md", "Errors")) - {"code", "param", "true", "false"}
    assert codes
    assert [code for code in sorted(codes) if f'"{code}"' not in source_text()] == []


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"`((?:vllm|pagebox):\w+)`", text))


def served_metrics() -> set[str]:
    served = {"vllm:cache_config_info"}  # known only once there is an engine
    metrics = Metrics("m", EngineClient(Path("nowhere")), TimeLimits(0))
    for family in (*metrics.observed.collect(), *metrics.state.collect()):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.startswith(("vllm:", "pagebox:")):
            served.add(name)
    return served


def test_every_metric_is_listed() -> None:
    assert metrics_in(section("api.md", "Metrics")) == served_metrics()


def test_what_is_said_to_be_no_metric_yet_is_none() -> None:
    missing = metrics_in(section("api.md", "Metrics that are not exported yet"))
    assert missing
    assert missing & served_metrics() == set()
