"""Run the steps of the Dockerfile in a Debian chroot, for a machine that has no Docker engine.

    sudo python scripts/check_dockerfile.py [--bind PATH]... FOLDER [-- ARGUMENTS]

Makes a minimal Debian with Python in the new FOLDER (by debootstrap; about 8 GB in the end), carries out ARG, ENV, COPY, RUN,
USER and WORKDIR in it, and at last the entry point with ARGUMENTS (default: those of CMD), as the image's user.
Not checked, since they are Docker's: layers, volumes, .dockerignore, and the `python:*-slim` base.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
KEPT = re.compile(r"(PIP_|SSL_|https?_proxy$|no_proxy$)", re.IGNORECASE)  # how this machine reaches its package index


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """(instruction, argument) in order; comments dropped, continued lines joined."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line:
            instruction, _, argument = line.partition(" ")
            yield instruction, argument.strip()


def bootstrap(root: Path, suite: str) -> None:
    """What the base image brings: Debian, Python with venv, certificates; and the name servers of this machine."""
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, suite, str(root)], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


def copy(argument: str, root: Path) -> None:
    *sources, target = argument.split()
    inside = root / target.lstrip("/")
    for source in (SOURCE / name for name in sources):
        if source.is_dir():
            shutil.copytree(source, inside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            inside.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, inside)


def run(line: str, root: Path, user: str, folder: str, env: dict[str, str], binds: list[str]) -> None:
    """One shell line inside, as `user`; its mounts are seen by no other process and end with it."""
    print(f"+ [{user}] {line}", flush=True)
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    mounts += [f"mkdir -p {root}{path} && mount --bind {path} {root}{path}" for path in binds]
    enter = f"exec chroot --userspec={user} {root} /bin/sh -ec {shlex.quote(f'cd {folder}; {line}')}"
    command = ["unshare", "--mount", "/bin/sh", "-ec", "\n".join([*mounts, enter])]
    subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("--suite", default="bookworm", help="release of Debian (its Python must be 3.11 or newer)")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH", help="a folder of this machine to show inside")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENTS")
    options = parser.parse_args()
    root = options.root.resolve()
    bootstrap(root, options.suite)

    env = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    env |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
    user, folder = "root", "/"
    entry: list[str] = []
    command: list[str] = []
    for instruction, argument in instructions(SOURCE / "Dockerfile"):
        match instruction:
            case "ARG":
                name, _, default = argument.partition("=")
                env.setdefault(name, os.environ.get(name, default.strip('"')))
            case "ENV":
                for pair in shlex.split(argument):
                    name, _, value = pair.partition("=")
                    env[name] = value.replace("$PATH", env["PATH"])
            case "COPY":
                copy(argument, root)
            case "RUN":
                run(argument, root, user, folder, env, options.bind)
            case "USER":
                user, env["HOME"] = argument, f"/home/{argument}"
            case "WORKDIR":
                folder = argument
            case "ENTRYPOINT":
                entry = json.loads(argument)
            case "CMD":
                command = json.loads(argument)
    run(shlex.join([*entry, *(options.arguments or command)]), root, user, folder, env, options.bind)


if __name__ == "__main__":
    main()
