"""The private names of other packages that dataflex lives by: all of them are in the table, and all of them exist."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from dataflex.core.errors import ConfigError, IncompatiblePackagesError
from dataflex.discovery.installed import version_of
from dataflex.objective import fused_head
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.trainer import DynamicTrainer, MixTrainer, ReorderTrainer, SelectTrainer, WeightTrainer
from dataflex.trainer.saved_run import SavedRun
from dataflex.upstream import relied_on
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
TABLE = relied_on.TRAINING | relied_on.TRL | relied_on.DEEPSPEED | relied_on.LLAMAFACTORY
IN_TABLE = {name for names in TABLE.values() for name in names} | {name for way in relied_on.RAY for name in way}
IN_TABLE |= {name for _, names in relied_on.SINCE.values() for name in names}
IN_TABLE |= {name for names in relied_on.OPTIONAL.values() for name in names}
OF_DEEPSPEED = {"_lazy_init_hp_params_optimizer_state"}  # of an object that only a run under it has; may be missing
OF_PYTHON = {"_exit"}  # os._exit, documented under that name
MIXINS = (DynamicTrainer, SavedRun, SelectTrainer, MixTrainer, ReorderTrainer, WeightTrainer)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a module of ours gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


DONE_WITHOUT = ("llamafactory", "trl")  # by core
OURS = {name for path, tree in TREES.items() if path.name != "host.py" for name in defined(tree)}
"""Without the protocol of a trainer, which repeats the names that its parts use."""


def used() -> Iterator[tuple[Path, str]]:
    """Private names in our source that none of our modules defines, and private modules and names that it imports."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in OURS:
                yield path, node.attr
            if isinstance(node, ast.ImportFrom) and node.module is not None and "dataflex" not in node.module:
                hidden = any(private(part) for part in node.module.split("."))
                yield from ((path, alias.name) for alias in node.names if hidden or private(alias.name))


def test_every_private_name_of_another_package_in_our_source_is_in_the_table():
    found = {(path.name, name) for path, name in used()}
    assert {"_remove_unused_columns", "_dataloaders", "OptimizedModule"} <= {name for _, name in found}
    assert {pair for pair in found if pair[1] not in IN_TABLE | OF_PYTHON} == set()


def test_every_private_name_that_is_looked_up_by_a_string_is_in_the_table():
    found = {
        node.args[place].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for place in range(len(node.args))
        if isinstance(node.args[place], ast.Constant)
        and isinstance(node.args[place].value, str)
        and node.args[place].value.isidentifier()
        and private(node.args[place].value)
    }
    assert {"_loss_shifts_labels", "_hf_deepspeed_config_weak_ref"} <= found
    assert found - IN_TABLE - OURS - OF_DEEPSPEED == set()


@pytest.mark.parametrize("package", ["transformers", "trl"])
def test_the_installed_release_has_what_is_relied_on_from_its_release_on(package):
    assert relied_on.missing(relied_on.later(package)) == []


@pytest.fixture
def without_fused_output(monkeypatch):
    """Takes the class out of TRL and has it be of a release."""
    monkeypatch.delattr(pytest.importorskip("trl.trainer.utils"), "FusedCausalLMOutput", raising=False)

    def of_release(version: str) -> None:
        monkeypatch.setattr(relied_on, "version_of", {"trl": version}.get)
        relied_on.require_fused_head.cache_clear()

    yield of_release
    relied_on.require_fused_head.cache_clear()


def test_a_trl_that_renames_its_fused_output_is_named_with_its_version(without_fused_output):
    without_fused_output("1.17.0")
    with pytest.raises(IncompatiblePackagesError) as refused:
        fused_head.fused_output()
    said = str(refused.value)
    assert "relies on trl.trainer.utils.FusedCausalLMOutput, " in said
    assert "seen in trl 1.15.0 to 1.16.0 (now 1.17.0) -> install a version between these" in said


def test_a_trl_before_the_fused_output_needs_none_but_its_chunked_loss_cannot_be_weighed(without_fused_output):
    without_fused_output("1.14.2")
    assert fused_head.fused_output() is None
    with pytest.raises(ConfigError, match=r"loss_type: is chunked_nll, .* -> set loss_type='nll'"):
        fused_head.require_weighable(SimpleNamespace(loss_type="chunked_nll"), "a weighter")


@pytest.mark.parametrize("mixin", MIXINS, ids=lambda mixin: mixin.__name__)
def test_every_private_method_of_the_trainer_that_is_overridden_is_in_the_table(mixin):
    overridden = {name for name in vars(mixin) if private(name) and hasattr(transformers.Trainer, name)}
    assert overridden <= set(relied_on.TRAINING["transformers.Trainer"])


@pytest.mark.parametrize(
    "owner",
    [pytest.param(owner, marks=[pytest.mark.llamafactory] * owner.startswith("llamafactory")) for owner in TABLE],
)
def test_every_name_of_the_table_is_in_the_installed_packages(owner):
    if (package := owner.partition(".")[0]) in DONE_WITHOUT:
        pytest.importorskip(package)
    assert relied_on.missing({owner: TABLE[owner]}) == []
    assert relied_on.missing({owner: ("_no_such_name",)}) == [f"{owner}._no_such_name"]


def test_the_installed_versions_are_among_those_in_which_the_names_were_seen():
    for package, (lowest, highest) in relied_on.SEEN.items():
        found = version_of(package)
        if found is not None or package not in DONE_WITHOUT:
            assert Version(lowest) <= Version(found.partition("+")[0]) <= Version(highest), package
    assert {owner.partition(".")[0] for owner in TABLE} == set(relied_on.SEEN)


def test_a_trainer_without_such_a_method_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    from dataflex.config.arguments import DataflexArguments
    from dataflex.config.spec import RunSpec
    from dataflex.train.trainer import trainer_class

    monkeypatch.delattr(transformers.Trainer, "_maybe_log_save_evaluate")
    relied_on.require_training.cache_clear()
    sources = {"a": TokenRows(4), "b": TokenRows(4)}
    spec = RunSpec(DataflexArguments(train_type="dynamic_mix", static_mix=True, train_step=1))
    try:
        with pytest.raises(IncompatiblePackagesError) as refused:
            trainer_class(MixTrainer, transformers.Trainer)(
                model=tiny_model(),
                args=tiny_training_args(tmp_path),
                train_dataset=sources,
                data_collator=pad_collate,
                dataflex=spec,
            )
    finally:
        relied_on.require_training.cache_clear()
    said = str(refused.value)
    assert "transformers.Trainer._maybe_log_save_evaluate" in said
    assert f"transformers 4.51.0 to 5.24.0 (now {transformers.__version__})" in said
    assert "-> install a version between these" in said


def test_a_package_without_its_source_or_that_cannot_be_imported_is_no_traceback(tmp_path, monkeypatch):
    def no_source(of):
        raise OSError("could not get source code")

    class Made:
        def __init__(self):
            self.given = 1

    monkeypatch.setattr(relied_on.inspect, "getsource", no_source)
    assert relied_on._given(Made, "given")
    assert not relied_on._given(Made, "gone")
    (tmp_path / "broken_package.py").write_text("from os import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert relied_on.missing({"broken_package": ("name",)}) == ["broken_package.name"]
