"""Builds pagebox_VERSION_amd64.deb, and pagebox_VERSION_amd64.tar.gz for machines without apt.

`make deb` runs it with Debian's own Python, as the environment in the package is for that. Both files hold the same
tree: a virtual environment in /opt/pagebox, units, a configuration, the manual page and the completion for bash.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import hashlib
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent
PACKAGING = SOURCE / "packaging"
PREFIX = Path("opt/pagebox")
COMPLETION = "bash-completion/completions/pagebox"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Not needed to run: torch's headers and static libraries, and what tests itself.
NEEDLESS = (
    "torch/include",
    "torch/share",
    "torch/test",
    "torch/bin/*[!r]",
    "torch/bin/test*",  # all but torch_shm_manager
    "**/tests",
    "**/*.a",
    "**/*.pyi",
    "**/__pycache__",
)
INSTALLED_ON_DEMAND = ("pip", "pip-*", "setuptools/_vendor/*.exe")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--torch", help="requirement to install first, such as torch==2.13.0")
    parser.add_argument("--extra", nargs="*", default=[], help="optional dependencies to include, such as gpu")
    options = parser.parse_args()
    version = re.search(r'^__version__ = "(.*)"', (SOURCE / "appliance" / "version.py").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    options.output.mkdir(parents=True, exist_ok=True)
    options.output = options.output.resolve()
    work = options.output / "work"
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    root.mkdir(parents=True)
    install_environment(root, options.torch, options.extra, work)
    install_files(root, version)
    name = f"pagebox_{version}_amd64"
    make_tarball(root, options.output / f"{name}.tar.gz")
    make_deb(root, version, options.output / f"{name}.deb")
    shutil.rmtree(work)
    print(options.output / f"{name}.deb")
    return 0


def install_environment(root: Path, torch: str | None, extras: list[str], work: Path) -> None:
    """The virtual environment. It is made where it is built and then told that it is somewhere else."""
    environment = root / PREFIX
    run(sys.executable, "-m", "venv", "--copies", str(environment))
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(work), str(copy_of_source(work)))
    [wheel] = work.glob("pagebox-*.whl")
    if torch:
        run(*pip, "install", "--no-compile", torch)
    run(*pip, "install", "--no-compile", f"{wheel}[{','.join(extras)}]" if extras else str(wheel))
    site = environment / "lib" / PYTHON / "site-packages"
    for pattern in (*NEEDLESS, *INSTALLED_ON_DEMAND):
        for path in sorted(site.glob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(environment / "include", ignore_errors=True)
    move_environment(environment)
    # Compiled here, as nobody may write there; with the paths that they will have.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(site, quiet=1, stripdir=str(root), prependdir="/", workers=0, invalidation_mode=mode)


def copy_of_source(work: Path) -> Path:
    """setuptools leaves its work in the folder that it builds."""
    copy = work / "source"
    copy.mkdir()
    for part in ("appliance", "kernels", "nginx"):
        shutil.copytree(SOURCE / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / part, copy)
    return copy


def move_environment(environment: Path) -> None:
    """Replace the path of the build by the final one, in the only places that have it: scripts and pyvenv.cfg."""
    scripts = environment / "bin"
    for script in list(scripts.iterdir()):
        if script.name.lower().startswith("activate") or re.match(r"(pip|wheel)", script.name):
            script.unlink()
        elif script.is_symlink():
            continue
        elif (data := script.read_bytes()).startswith(b"#!"):
            script.write_bytes(data.replace(str(environment).encode(), f"/{PREFIX}".encode()))
    config = environment / "pyvenv.cfg"
    config.write_text(re.sub(rf"{re.escape(str(environment))}", f"/{PREFIX}", config.read_text()))
    for record in environment.rglob("direct_url.json"):  # says where the wheel lay when it was built
        record.unlink()


def install_files(root: Path, version: str) -> None:
    units = root / "lib" / "systemd" / "system"
    for unit in (SOURCE / "systemd").glob("*.*"):
        if unit.is_file():
            put(unit, units / unit.name)
    put(SOURCE / "systemd/nginx.service.d/pagebox.conf", units / "nginx.service.d/pagebox.conf")
    put(SOURCE / "systemd/sysusers.d/pagebox.conf", root / "usr/lib/sysusers.d/pagebox.conf")
    put(SOURCE / "systemd/tmpfiles.d/pagebox.conf", root / "usr/lib/tmpfiles.d/pagebox.conf")
    put(PACKAGING / "pagebox.yaml", root / "etc/pagebox/pagebox.yaml")
    (root / "etc/pagebox/conf.d").mkdir()
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/pagebox").symlink_to(f"/{PREFIX}/bin/pagebox")
    documents = root / "usr/share/doc/pagebox"
    for example in (PACKAGING / "configs").glob("*.yaml"):
        put(example, documents / "examples" / example.name)
    put(PACKAGING / "debian/copyright", documents / "copyright")
    put_compressed(changelog(version), documents / "changelog.gz")
    python = str(root / PREFIX / "bin" / "python")
    for script, target in (("man_page.py", "man/man1/pagebox.1.gz"), ("completion.py", COMPLETION)):
        text = subprocess.run(
            [python, "-B", str(PACKAGING / script)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        path = root / "usr/share" / target
        if path.suffix == ".gz":
            put_compressed(text, path)
        else:
            put_text(text, path)
    put(PACKAGING / "debian/lintian-overrides", root / "usr/share/lintian/overrides/pagebox")


def changelog(version: str) -> str:
    date = subprocess.run(["date", "-R", "-u"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return (
        f"pagebox ({version}) stable; urgency=medium\n\n  * This release.\n\n"
        f" -- The pagebox maintainers <maintainers@pagebox.invalid>  {date}\n"
    )


def make_tarball(root: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for script in ("install.sh", *(f"debian/{name}" for name in ("postinst", "prerm", "postrm"))):
            archive.add(PACKAGING / script, f"pagebox/{Path(script).name}", filter=owned_by_root)
        archive.add(root, "pagebox/root", filter=owned_by_root)


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def make_deb(root: Path, version: str, target: Path) -> None:
    control = root / "DEBIAN"
    control.mkdir()
    size = sum(path.lstat().st_size for path in root.rglob("*")) // 1024
    text = (PACKAGING / "debian/control").read_text()
    for name, value in (("VERSION", version), ("SIZE", str(size)), ("PYTHON", PYTHON)):
        text = text.replace(f"@{name}@", value)
    put_text(text, control / "control")
    put(PACKAGING / "debian/conffiles", control / "conffiles")
    for script in ("postinst", "prerm", "postrm"):
        put(PACKAGING / "debian" / script, control / script, mode=0o755)
    sums = [
        line
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and control not in path.parents
        for line in [f"{digest(path)}  {path.relative_to(root)}\n"]
        if not line.endswith("etc/pagebox/pagebox.yaml\n")
    ]
    put_text("".join(sums), control / "md5sums")
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # xz at its lowest level: a tenth larger than at its highest, in a fifth of the time.
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(target))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def put(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def put_text(text: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(0o644)


def put_compressed(text: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    target.chmod(0o644)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
