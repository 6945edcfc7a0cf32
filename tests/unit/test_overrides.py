"""What a user may give in the place of the run's own: a blank folder would be the working directory."""

from __future__ import annotations

import pytest
import yaml
from dataflex.config.component_choice import resolve
from dataflex.core.errors import ConfigError
from dataflex.discovery.catalog import components
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct, constructor_parameters
from dataflex.discovery.injected import INJECTED, OVERRIDABLE

TAKEN = [
    pytest.param(info, name, id=f"{info.kind.name} {info.name} {name}")
    for info in components()
    for name in sorted(OVERRIDABLE)
    if name in constructor_parameters(find(info.kind, info.name))[0]
]
WRONG = {
    "cache_dir": ["", "  ", None, 3, True, ["a"], [], {"a": 1}],
    "output_dir": ["", "\t", None, 3, True, ["a"]],
    "seed": ["7", None, 1.5, True, [7]],
}


@pytest.mark.parametrize(("info", "name"), TAKEN)
def test_a_value_that_cannot_be_meant_is_refused_by_name_from_the_file_and_from_python(info, name, tmp_path):
    cls = find(info.kind, info.name)
    file = tmp_path / "components.yaml"
    for value in WRONG[name]:
        file.write_text(yaml.safe_dump({info.kind.section: {"mine": {"name": info.name, "params": {name: value}}}}))
        with pytest.raises(ConfigError) as refused:
            resolve(info.kind, "mine", file)
        assert f"{info.kind.section}.mine.params.{name}: found {value!r}, allowed: " in str(refused.value)
        with pytest.raises(ConfigError) as refused:
            construct(cls, {name: value}, dict.fromkeys(INJECTED))
        assert f"{cls.__name__}: {name}: found {value!r}, allowed: " in str(refused.value)


def test_every_selector_is_among_them():
    taken = {(param.values[0].name, param.values[1]) for param in TAKEN}
    installed = {info.name for info in components() if info.kind.name == "selector" and info.version}
    assert installed <= {name for name, parameter in taken if parameter == "cache_dir"}
