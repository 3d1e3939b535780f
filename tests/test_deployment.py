"""What `bordnetz check` finds in a deployment before IoT Edge, or the simulator, has to refuse it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import InputError
from simulator import deployment
from simulator.demo import ROOT

AGENT, HUB = "modulesContent.$edgeAgent.properties.desired", "modulesContent.$edgeHub.properties.desired"
MANIFEST = deployment.expand(ROOT / "deployment.template.json")
UPLINK = f"{AGENT}.modules.uplink"


def uplink(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["$edgeAgent"]["properties.desired"]["modules"]["uplink"].update(changes)


def options(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return uplink(settings={"image": "bordnetz-uplink:1", "createOptions": json.dumps(changes)})


def host(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return options(HostConfig=changes)


def route(definition: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["$edgeHub"]["properties.desired"].update(routes={"up": definition})


def modules(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        known = content["$edgeAgent"]["properties.desired"]["modules"]
        known.update({name: known["uplink"] if module == "as uplink" else module for name, module in changes.items()})

    return change


NONE = "FROM /messages/* INTO $upstream"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (uplink(restartPolicy="allways"), f'{UPLINK}.restartPolicy: "allways" is not allowed'),
        (uplink(restartPolicy="on-failure"), f"{UPLINK}.restartPolicy: IoT Edge does not implement on-failure"),
        (uplink(status="on"), f'{UPLINK}.status: "on" is not allowed; take running or stopped'),
        (uplink(type="podman"), f'{UPLINK}.type: "podman" is not allowed; take docker'),
        (uplink(imagePullPolicy="sometimes"), f'{UPLINK}.imagePullPolicy: "sometimes" is not allowed'),
        (uplink(startupOrder=-1), f"{UPLINK}.startupOrder: -1 is no order; take 0 to 4294967295"),
        (uplink(startupOrder=True), f"{UPLINK}.startupOrder: True is no order"),
        (uplink(settings=None), f"{UPLINK}.settings: is no object"),
        (uplink(settings={"image": " "}), f"{UPLINK}.settings.image: is missing"),
        (uplink(env={"A": "b"}), f"{UPLINK}.env.A: is no setting"),
        (uplink(env={"A": {"value": [1]}}), f"{UPLINK}.env.A: is no setting"),
        (uplink(settings={"image": "x", "createOptions": "{"}), f"{UPLINK}.settings.createOptions: is no JSON object"),
        (options(HostConfig=[]), f"{UPLINK}.settings.createOptions.HostConfig: is no object"),
        (host(Binds="/a:/b"), f"{UPLINK}.settings.createOptions.HostConfig.Binds: '/a:/b' is no list"),
        (host(Binds=["/a"]), f"{UPLINK}.settings.createOptions.HostConfig.Binds: '/a' is no bind; host:/container"),
        (host(Binds=["/a:b"]), f"{UPLINK}.settings.createOptions.HostConfig.Binds: '/a:b' is no bind; host:/container"),
        (host(Binds=[5]), f"{UPLINK}.settings.createOptions.HostConfig.Binds: 5 is no bind; host:/container"),
        (host(NetworkMode="host"), f"{UPLINK}.settings.createOptions: NetworkMode host alone"),
        (modules(uplink=None), f"{UPLINK}: is no object"),
        (modules(**{"up link": "as uplink"}), f"{AGENT}.modules.up link: 'up link' is no module name"),
        (modules(edgeHub="as uplink"), f"{AGENT}.modules.edgeHub: a system module has this name; take another"),
        (
            modules(**{f"m{number}": {"type": "docker"} for number in range(49)}),
            f"{AGENT}.modules: 51 modules; 50 are allowed; leave some away",
        ),
        (route("FROM /messages/* INTO"), f"{HUB}.routes.up: is no route"),
        (route(5), f"{HUB}.routes.up: is no route"),
        (route("FROM /messages/modules/x/* INTO $upstream"), f"{HUB}.routes.up: there is no module x"),
        (route("FROM /messages/* WHERE level > 3 INTO $upstream"), f"{HUB}.routes.up: condition: > between text and"),
        (route({"route": NONE, "priority": 10}), f"{HUB}.routes.up.priority: 10 is no priority; take 0 to 9"),
        (route({"route": NONE, "timeToLiveSecs": -1}), f"{HUB}.routes.up.timeToLiveSecs: -1 is no time"),
        (
            lambda content: content["uplink"]["properties.desired"].update(big=["v" * 4000] * 9),
            "modulesContent.uplink.properties.desired: the section has 36",
        ),
        (lambda content: content.update(x={}), "modulesContent.x: the deployment has no such module"),
        (uplink(restartpolicy="never"), f"{UPLINK}.restartpolicy: is not known; did you mean restartPolicy?"),
        (uplink(settings={"image": "x", "createOption": ""}), f"{UPLINK}.settings.createOption: is not known; did you"),
        (route({"route": NONE, "timeToLiveSec": 5}), f"{HUB}.routes.up.timeToLiveSec: is not known; did you mean"),
        (
            lambda content: content["$edgeHub"]["properties.desired"].update(route={}),
            f"{HUB}.route: is not known; did you mean routes?",
        ),
        (
            lambda content: content["$edgeAgent"]["properties.desired"].update(modulez={}),
            f"{AGENT}.modulez: is not known; did you mean modules?",
        ),
        (uplink(env={"A": {"value": "${LEFT"}}), f"{UPLINK}.env.A.value: a placeholder without its }}; close it"),
        (uplink(env={"${X}": {"value": ""}}), f"{UPLINK}.env.${{X}}: a placeholder in a name; write the name itself"),
    ],
)
def test_what_iot_edge_would_refuse_is_found(change, finding):
    manifest = copy.deepcopy(MANIFEST)
    change(manifest["modulesContent"])
    found = deployment.check_manifest(manifest, Path("d.json"))
    assert any(line.startswith(f"d.json: {finding}") for line in found), found


def test_the_deployment_of_the_project_has_no_findings():
    assert deployment.check_manifest(MANIFEST, Path("d.json")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "c stands there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is no number"),
        ('{"a":' * 5000, "is not JSON"),
        ("\ufeff{}", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_what_only_looks_like_a_deployment_is_refused(tmp_path, text, problem):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        deployment.check(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('{"image": {"repository": "r", "tag": {"version": "1"}}}', "image: platforms is missing; add it"),
        (
            '{"image": {"repository": "r", "tag": {"version": "1", "platforms": {"amd64": "./Dockerfile"}}}}',
            "image.tag.platforms.amd64: there is no ./Dockerfile; add or correct it",
        ),
    ],
)
def test_a_module_that_names_no_dockerfile_that_is_there_is_found(tmp_path, text, finding):
    (tmp_path / "modules" / "probe").mkdir(parents=True)
    (tmp_path / "modules" / "probe" / "module.json").write_text(text)
    (tmp_path / "d.json").write_text(json.dumps(MANIFEST))
    found = [line for line in deployment.check(tmp_path / "d.json") if "probe" in line]
    assert [line.partition("module.json: ")[2] for line in found] == [finding]


def test_names_that_are_not_near_a_known_one_are_left_to_iot_edge():
    manifest = copy.deepcopy(MANIFEST)
    manifest["modulesContent"]["$edgeHub"]["properties.desired"]["mqttBroker"] = {}
    uplink(somethingNew=5)(manifest["modulesContent"])
    assert deployment.check_manifest(manifest, Path("d.json")) == []


# -- Dockerfiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["collector", "uplink"])
def test_the_images_of_both_processors_differ_in_nothing_but_the_processor(module):
    texts = {
        platform: (ROOT / "modules" / module / f"Dockerfile.{platform}").read_text()
        for platform in ("amd64", "arm64v8")
    }
    assert texts["arm64v8"].count("FROM --platform=linux/arm64 $BASE") == 2
    own = texts["arm64v8"].replace("linux/arm64", "linux/amd64").replace("arm64v8", "amd64")
    assert own == texts["amd64"]


def test_both_modules_have_one_dockerfile_but_for_their_names():
    for platform in ("amd64", "arm64v8"):
        texts = [(ROOT / "modules" / name / f"Dockerfile.{platform}").read_text() for name in ("collector", "uplink")]
        assert texts[0].replace("collector", "uplink") == texts[1]
