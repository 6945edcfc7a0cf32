"""Versions: a pair that cannot be imported is refused with the command that mends it; an untried one is only named."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
from dataflex.core.errors import IncompatiblePackagesError
from dataflex.launch import packages
from dataflex.launch.packages import TESTED, require_working_packages
from dataflex.utils.logging import logger

GOOD = {"torch": "2.11.0+cu128", "torchaudio": "2.11.0", "llamafactory": "0.9.5", "transformers": "5.6.0"}


@pytest.fixture
def installed(monkeypatch):
    """``installed(torch=...)`` checks a set of packages, None for a missing one; returns what was warned of."""
    monkeypatch.delenv("DISABLE_VERSION_CHECK", raising=False)

    def installed_(**versions):
        found = GOOD | versions

        def version(package):
            if found.get(package) is None:
                raise PackageNotFoundError(package)
            return found[package]

        monkeypatch.setattr(packages, "version", version)
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
            ["transformers 5.6.1 is not known", "4.55.0 to 5.6.0", "llamafactory 0.9.5"],
        ),
        ({"transformers": "4.51.0"}, ["transformers 4.51.0", "4.55.0 to 5.6.0"]),
        ({"llamafactory": "0.9.4"}, ["transformers 5.6.0", "4.51.0 to 4.57.1", "llamafactory 0.9.4"]),
        ({"transformers": "5.10.0"}, ["transformers 5.10.0"]),
    ],
)
def test_an_untried_version_is_named_and_stops_nothing(installed, versions, words):
    (warning,) = installed(**versions)
    for word in words:
        assert word in warning


def test_two_untried_versions_are_two_warnings(installed):
    first, second = installed(llamafactory="0.10.0", transformers="6.0.0")
    assert "llamafactory 0.10.0" in first
    assert "transformers 6.0.0" in second
    assert "4.51.0 to 5.6.0" in second  # no llamafactory to say what it admits


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
