"""`make genconfig`: does iotedgedev make the same manifest of deployment.template.json as `bordnetz check --expand`?

    deployment.template.json, .env, modules/ ──copied──► iotedgedev solution genconfig ──┐
                                             └─────────► bordnetz check --expand ────────┴─ compared, value by value

iotedgedev is installed from PyPI into an environment of its own. Where that fails there is nothing to compare with: it
says so, and that is no failure. It sends usage data unless told not to; here it has a home of its own that says no.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IOTEDGEDEV = "iotedgedev==3.3.9"
INSTALL_SECONDS, RUN_SECONDS = 500, 300  # without a network it waits for schemas that it cannot fetch
SETTINGS = "[DEFAULT]\nfirsttime = no\ncollect_telemetry = no\n"


def main(folder: Path) -> int:
    venv, project, home = folder / "venv", folder / "project", folder / "home"
    if reason := _install(venv):
        print(f"genconfig: skipped, {IOTEDGEDEV} cannot be installed here: {reason}")
        return 0
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    for name in ("deployment.template.json", ".env"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(ROOT / "modules", project / "modules")
    (home / ".iotedgedev").mkdir(parents=True, exist_ok=True)
    (home / ".iotedgedev" / "setting.ini").write_text(SETTINGS)
    environment = {**os.environ, "HOME": str(home)}
    _run([str(venv / "bin" / "iotedgedev"), "solution", "genconfig", "-P", "amd64"], project, environment)
    bordnetz = str(Path(sys.executable).with_name("bordnetz"))
    _run([bordnetz, "check", "--expand", "ours.json", "deployment.template.json"], project, environment)
    theirs = json.loads((project / "config" / "deployment.amd64.json").read_text())
    ours = json.loads((project / "ours.json").read_text())
    found = list(differences(ours, theirs))
    print("\n".join(found) or f"genconfig: {IOTEDGEDEV} makes the same manifest")
    return 1 if found else 0


def differences(ours: Any, theirs: Any, place: str = "manifest") -> Iterator[str]:
    """One line each: JSON path and both values; numbers, strings and booleans are different things."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            if name in ours and name in theirs:
                yield from differences(ours[name], theirs[name], f"{place}.{name}")
            else:
                yield f"{place}.{name}: only in {'ours' if name in ours else 'theirs'}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(own, other, f"{place}[{number}]")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield f"{place}: ours {json.dumps(ours)}, theirs {json.dumps(theirs)}"


def _install(venv: Path) -> str:
    """Why not, or nothing."""
    if (venv / "bin" / "iotedgedev").exists():
        return ""
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", IOTEDGEDEV]
    try:
        for command in ([sys.executable, "-m", "venv", str(venv)], pip):
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    if done.returncode:
        sys.exit(f"genconfig: {Path(command[0]).name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
