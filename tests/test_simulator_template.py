"""Templates expand as the official tools expand them, and what does not is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from edge.errors import InputError
from simulator import template
from simulator.demo import ROOT

MODULE = {
    "image": {
        "repository": "${REGISTRY}/Probe",
        "tag": {
            "version": "1.2",
            "platforms": {
                "amd64": "./Dockerfile.amd64",
                "arm64v8": "./Dockerfile.arm64v8",
                "amd64.debug": "./Dockerfile.amd64.debug",
            },
        },
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".env").write_text('# of the registry\n\nREGISTRY="reg.example"\nLEVEL = debug\n')
    (tmp_path / "modules" / "probe").mkdir(parents=True)
    (tmp_path / "modules" / "probe" / "module.json").write_text(json.dumps(MODULE))
    return tmp_path


def expanded(root: Path, env: dict[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    modules = {"probe": {"settings": settings}}
    document = {
        "$schema-template": "2.0.0",
        "modulesContent": {"$edgeAgent": {"properties.desired": {"modules": modules}}},
    }
    (root / "t.json").write_text(json.dumps(document))
    manifest = template.expand(root / "t.json", env or {})
    assert manifest.keys() == {"modulesContent"}
    return manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["probe"]["settings"]


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("${MODULES.probe}", "reg.example/probe:1.2-amd64"),
        ("${MODULES.probe.amd64}", "reg.example/probe:1.2-amd64"),
        ("${MODULES.probe.arm64v8}", "reg.example/probe:1.2-arm64v8"),
        ("${MODULES.probe.debug}", "reg.example/probe:1.2-amd64.debug"),
        ("${MODULES.probe.amd64.debug}", "reg.example/probe:1.2-amd64.debug"),
        ("${MODULEDIR<modules/probe>}", "reg.example/probe:1.2-amd64"),
        ("${MODULEDIR<./modules/probe>.arm64v8}", "reg.example/probe:1.2-arm64v8"),
        ("$REGISTRY/a:$LEVEL-${LEVEL}", "reg.example/a:debug-debug"),
        ("$edgeHub and $upstream", "$edgeHub and $upstream"),
    ],
)
def test_images_and_variables_are_filled_in(root, text, image):
    assert expanded(root, image=text)["image"] == image


def test_the_environment_goes_before_the_file(root):
    assert expanded(root, {"REGISTRY": "other"}, image="${MODULES.probe}")["image"] == "other/probe:1.2-amd64"


def test_images_are_those_of_the_platform_that_is_asked_for(root):
    expanded(root, image="${MODULES.probe}")
    manifest = template.expand(root / "t.json", {}, platform="arm64v8")
    modules = manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    assert modules["probe"]["settings"]["image"] == "reg.example/probe:1.2-arm64v8"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "${MODULES.nosuch}",
            r"modules\.probe\.settings\.image: \$\{MODULES\.nosuch\} is no image for amd64; .*gives none",
        ),
        ("${MODULES.probe.riscv}", r"is no image; .*module\.json gives .*MODULES\.probe\.arm64v8"),
        ("$NOWHERE", r"settings\.image: \$NOWHERE is not defined; set it in the environment or in \.env"),
    ],
)
def test_what_cannot_be_filled_in_is_named_with_its_place(root, text, problem):
    with pytest.raises(InputError, match=problem):
        expanded(root, image=text)


def test_a_file_of_variables_that_is_no_text_is_named(root):
    (root / ".env").write_bytes(b"REGISTRY=\xff\n")
    with pytest.raises(InputError, match=r"\.env: cannot be read"):
        expanded(root, image="x")


@pytest.mark.parametrize("characters", [2, 511, 512, 513, 1024, 1025, 4096])
def test_create_options_become_strings_of_512_characters(root, characters):
    options: dict[str, Any] = {"Cmd": "x" * (characters - 10)} if characters > 2 else {}
    settings = expanded(root, image="x", createOptions=options)
    names = sorted(name for name in settings if name.startswith("createOptions"))
    assert names == ["createOptions", *(f"createOptions{n:02}" for n in range(1, len(names)))]
    assert [len(settings[name]) for name in names[:-1]] == [512] * ((characters - 1) // 512)
    assert len("".join(settings[name] for name in names)) == characters
    assert template.create_options(settings) == options


def test_create_options_that_are_strings_already_are_cut_anew(root):
    text = json.dumps({"Cmd": "x" * 700})
    settings = expanded(root, image="x", createOptions=text[:9], createOptions01=text[9:])
    assert [len(settings[name]) for name in ("createOptions", "createOptions01")] == [512, len(text) - 512]
    assert "createOptions02" not in settings


def test_create_options_over_eight_strings_are_refused(root):
    with pytest.raises(InputError, match=r"createOptions: 4097 characters; 4096 are allowed; shorten them"):
        expanded(root, image="x", createOptions={"Cmd": "x" * (4097 - 10)})


def test_the_template_of_the_project_is_for_both_processors():
    for platform in ("amd64", "arm64v8"):
        manifest = json.dumps(template.expand(ROOT / "deployment.template.json", platform=platform))
        assert manifest.count(f"0.1.0-{platform}") == 2
