"""Versions: a pair that cannot be imported is refused with the command that mends it; an untried one is only named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dataflex.core.errors import IncompatiblePackagesError
from dataflex.launch import packages
from dataflex.launch.packages import BROKEN, TESTED, require_working_packages
from dataflex.utils.logging import logger

GOOD = {"torch": "2.11.0+cu128", "torchaudio": "2.11.0", "llamafactory": "0.9.5", "transformers": "5.5.4"}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch):
    """``installed(torch=...)`` checks a set of packages, None for a missing one; returns what was warned of."""
    monkeypatch.delenv("DISABLE_VERSION_CHECK", raising=False)

    def installed_(**versions):
        found = GOOD | versions
        monkeypatch.setattr(packages, "version_of", found.get)
        warned: list[str] = []
        monkeypatch.setattr(logger, "warning", warned.append)
        require_working_packages()
        return warned

    return installed_


@pytest.mark.parametrize("llamafactory", TESTED)
def test_both_ends_of_what_is_tested_pass_in_silence(installed, llamafactory):
    for transformers in TESTED[llamafactory]:
        assert installed(llamafactory=llamafactory, transformers=transformers) == []
    assert installed(llamafactory=f"{llamafactory}+local", transformers=TESTED[llamafactory][0]) == []


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"llamafactory": "0.9.6"}, ["llamafactory 0.9.6 is not known to work", "0.9.4 to 0.9.5"]),
        ({"llamafactory": "0.9.5.dev0"}, ["llamafactory 0.9.5.dev0"]),
        (
            {"transformers": "5.6.1"},
            ["transformers 5.6.1 is not known", "4.55.0 to 5.5.4", "llamafactory 0.9.5"],
        ),
        ({"transformers": "4.51.0"}, ["transformers 4.51.0", "4.55.0 to 5.5.4"]),
        ({"llamafactory": "0.9.4"}, ["transformers 5.5.4", "4.51.0 to 4.57.1", "llamafactory 0.9.4"]),
        ({"transformers": "5.10.0"}, ["transformers 5.10.0"]),
    ],
)
def test_an_untried_version_is_named_and_stops_nothing(installed, versions, words):
    (warning,) = installed(**versions)
    for word in words:
        assert word in warning


@pytest.mark.parametrize(("package", "release"), BROKEN)
def test_a_broken_release_is_named_once_with_the_reason_and_the_way_out(installed, package, release, monkeypatch):
    reason, instead = BROKEN[package, release]
    (warning,) = installed(**{package: release})
    assert f"{package} {release} is a broken release: {reason} -> pip install " in warning
    assert f'"{package}=={instead}"' in warning
    assert (package, instead) not in BROKEN
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    assert installed(**{package: release}) == []


def test_the_pins_are_no_broken_releases():
    for file in ("constraints.txt", "constraints-minimums.txt"):
        pins = re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(pins) > 10
        assert BROKEN.keys().isdisjoint(pins)


def test_the_pins_are_the_ends_of_what_is_tested():
    highest, lowest = (
        dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE))
        for file in ("constraints.txt", "constraints-minimums.txt")
    )
    assert TESTED[highest["llamafactory"]][1] == highest["transformers"]
    assert TESTED[lowest["llamafactory"]][0] == lowest["transformers"]


def test_a_checkout_of_llamafactory_on_the_path_needs_no_metadata(tmp_path):
    """Its users run it from its source; the version stands in a file of it. A folder of that name is none."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "import importlib.metadata as metadata\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name == 'llamafactory': raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "from dataflex.discovery.installed import has_package, version_of\n"
        "from dataflex.launch.packages import untested_versions\n"
        "print(json.dumps([has_package('llamafactory'), version_of('llamafactory'), list(untested_versions())]))\n"
    )

    def seen(folder):
        ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    package = tmp_path / "src" / "llamafactory"
    (package / "extras").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "extras" / "env.py").write_text('VERSION = "0.9.6.dev0"\n', encoding="utf-8")
    there, version, warnings = seen(tmp_path / "src")
    assert there
    assert version == "0.9.6.dev0"
    assert any("llamafactory 0.9.6.dev0 is not known to work" in warning for warning in warnings)
    (package / "extras" / "env.py").write_text("VERSION = made()\n", encoding="utf-8")
    assert seen(tmp_path / "src")[:2] == [True, None]


def test_two_untried_versions_are_two_warnings(installed):
    first, second = installed(llamafactory="0.10.0", transformers="6.0.0")
    assert "llamafactory 0.10.0" in first
    assert "transformers 6.0.0" in second
    assert "4.51.0 to 5.5.4" in second  # no llamafactory to say what it admits


def test_llamafactorys_own_switch_silences_the_warnings(installed, monkeypatch):
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    assert installed(llamafactory="0.10.0", transformers="6.0.0") == []


@pytest.mark.parametrize(
    ("torch", "torchaudio", "words"),
    [
        ("2.12.1", "2.11.0", "torch is 2.12 but torchaudio is 2.11"),
        ("2.6.0+cu124", "2.11.0+cpu", "torch is 2.6 but torchaudio is 2.11"),
        ("2.11.0", None, "torch is 2.11 but torchaudio is not installed"),
    ],
)
def test_a_torchaudio_of_another_torch_is_refused_with_the_command(installed, torch, torchaudio, words, monkeypatch):
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")  # it would fail at import all the same
    with pytest.raises(IncompatiblePackagesError, match=words) as caught:
        installed(torch=torch, torchaudio=torchaudio)
    assert 'pip install "torch==' in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_patch_release_of_torchaudio_is_no_reason_to_refuse(installed):
    assert installed(torch="2.11.1", torchaudio="2.11.0") == []
    assert installed(torch=None, torchaudio=None) == []
