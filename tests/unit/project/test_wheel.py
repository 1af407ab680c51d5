"""The wheel that `pip wheel .` builds has everything in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PARTS = ("appliance", "kernels", "nginx", "pyproject.toml", "README.md", "LICENSE")


def modules() -> set[str]:
    """Every module of the repository, as its path in the wheel."""
    files = [file for folder in ("appliance", "kernels", "nginx") for file in (ROOT / folder).rglob("*.py")]
    paths = [file.relative_to(ROOT).as_posix() for file in files]
    return {path if path.startswith("appliance/") else f"appliance_{path}" for path in paths}


def templates() -> set[str]:
    return {f"appliance_nginx/{file.name}" for file in (ROOT / "nginx").glob("*.j2")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:  # a copy, as setuptools leaves its work in the source folder
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


def test_every_folder_with_modules_is_listed_in_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.rpartition("/")[0].replace("/", ".") for path in modules()}
    assert sorted(listed) == sorted(folders), (
        "the list `packages` of [tool.setuptools] in pyproject.toml is out of date"
    )


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == modules() | templates()


def test_the_package_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import appliance, appliance_kernels.metadata, appliance_nginx, appliance.cli.main, appliance.engine.process\n"
        f"assert appliance.__file__.startswith({str(tmp_path)!r}), appliance.__file__\n"
        f"assert appliance_kernels.metadata.__file__.startswith({str(tmp_path)!r})\n"
        "assert appliance.cli.main.main(['nginx', 'render', '--allow-unauthenticated']) == 0\n"
        "raise SystemExit(appliance.cli.main.main(['version']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("pagebox ")


def test_the_wheel_declares_the_command_and_the_license(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [entry_points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "pagebox = appliance.cli.main:main" in archive.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
