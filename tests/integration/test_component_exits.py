"""A component or plugin that ends the process: a fault that names it, with exit code 1, and never a success."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dataflex.cli import commands
from dataflex.cli.commands import BUILT_IN, Command
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core import hookspecs, registry
from dataflex.core.component import Component
from dataflex.core.errors import BrokenPluginError, ComponentError, blaming
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.discovery import component_classes, plugins
from dataflex.discovery.construct import construct
from dataflex.discovery.plugins import load_plugin_files, plugin_manager
from dataflex.interfaces.order import Order
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selector
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.trainer import MixTrainer, ReorderTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.trainer.score_trainer import ScoreTrainer
from transformers import Trainer

main = import_module("dataflex.cli.main")  # the package has a function of that name too


class Ends(BaseException):
    """An error of a component's own that is no ``Exception``."""


class Rows(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        return range(num_samples)

    def scores(self, model, step_id, **kwargs):
        return np.zeros(len(self.dataset))


class Shares(Mixer):
    def mix(self, model, step_id, **kwargs):
        return np.full(len(self.mixture_manager.names), 1 / len(self.mixture_manager.names))

    def observe(self, step, losses_K, tokens_K):
        pass

    def loss_weights(self):
        return np.ones(len(self.mixture_manager.names))


class Sketched(Shares):
    """Looks at gradients, so that the hooks for these are called; it does not weigh, which the sketches would see."""

    loss_weights = Mixer.loss_weights

    def observe_gradients(self, step, gradients):
        pass


class Plain(Weighter):
    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()


class Tokens(Plain):
    weighs_tokens = True

    def token_weights(self, losses_BT, *, ctx=None, model=None, inputs=None):
        return torch.ones_like(losses_BT)


class Ascending(Order):
    def arrange(self, scores, *, context):
        return np.argsort(scores, kind="stable")


KINDS = {
    SELECTOR: (Selector, Rows, SelectTrainer, "dynamic_select"),
    MIXER: (Mixer, Shares, MixTrainer, "dynamic_mix"),
    ORDER: (Order, Ascending, ReorderTrainer, "dynamic_reorder"),
    WEIGHTER: (Weighter, Plain, WeightTrainer, "dynamic_weight"),
}
NOT_CALLED_BY_A_RUN = {"accepts", "cost", "explains", "generator", "leave_out"}
"""What dataflex gives a component and asks of no subclass, and what ``dataflex-cli plan`` alone asks."""
EXPLAIN_NOTHING = (Mixer, Order)


def hooks_of(base: type) -> list[str]:
    """The methods and properties that a component of this kind may override: all that the run calls."""
    found = [
        name
        for name, value in inspect.getmembers_static(base)
        if not name.startswith("_") and isinstance(value, Callable | property | classmethod)
    ]
    return sorted(set(found) - NOT_CALLED_BY_A_RUN - ({"explain"} if issubclass(base, EXPLAIN_NOTHING) else set()))


NEEDS = {
    "gradient_sketch": Sketched,
    "wants_gradients": Sketched,
    "token_weights": Tokens,
    "mean_token_weight": Tokens,
}
"""Hooks that are called of a component that says or does something more."""
LOADED = {
    "needs_sources",
    "needs_columns",
    "needs_token_column",
}  # asked for where LLaMA-Factory loads the rows, and by nothing else
WALK = [
    pytest.param(kind, hook, marks=[pytest.mark.llamafactory] if hook in LOADED else [])
    for kind, (base, *_) in KINDS.items()
    for hook in ["__init__", *hooks_of(base)]
]


def ending(cls: type, hook: str, error: BaseException) -> type:
    """Returns ``cls`` whose ``hook`` ends the process."""

    def ends(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise error

    static = inspect.getattr_static(cls, hook)
    wrap = {property: property, classmethod: classmethod}.get(type(static), lambda function: function)
    return type(f"Ending{cls.__name__}", (cls,), {hook: wrap(ends), "__module__": __name__})


def run_all(kind: Any, cls: type, folder: Any, monkeypatch: Any, hook: str) -> None:
    """Trains four steps with a checkpoint after each, resumes, and scores: everything that a run calls."""
    _, _, mixin, train_type = KINDS[kind]
    monkeypatch.setitem(registry._registered, (kind.section, "ends"), cls)
    keys = DataflexArguments(
        train_type=train_type, component_name="ends", warmup_step=1, update_step=1, update_times=3, train_step=4
    )
    arranges = {"by": "length", "over": "run"} if kind is ORDER else {}
    spec = RunSpec(keys, ComponentSpec(kind, "ends", "ends", **arranges))
    if hook == "needs_columns":
        from dataflex.integrations.llamafactory.raw_columns import wanted_columns

        wanted_columns(spec)
    if hook == "needs_token_column":
        from dataflex.integrations.llamafactory.message_weights import wanted_column

        wanted_column(spec)
    if hook == "needs_sources":
        from dataflex.integrations.llamafactory.tokenized_sources import _weighter_needs_sources

        _weighter_needs_sources(spec, SimpleNamespace(dataset=["a"], mix_strategy="concat"))
    rows: Any = TokenRows(16, lengths=8)
    if kind is MIXER:
        rows = {"a": TokenRows(8, lengths=8), "b": TokenRows(8, lengths=8, seed=1)}

    def made(mixin: Any) -> Any:
        sizes = {"max_steps": -1, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
        args = tiny_training_args(folder, **sizes)
        return trainer_class(mixin, Trainer)(
            model=tiny_model(),
            args=args,
            train_dataset=rows,
            data_collator=pad_collate,
            dataflex=spec,
            overwrite_output_dir=True,
        )

    made(mixin).train()
    made(mixin).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    if kind is SELECTOR:
        made(ScoreTrainer).train()


def test_the_walk_holds_every_hook_of_every_kind():
    assert {"select", "warmup", "scores"} <= set(hooks_of(Selector))
    assert {"mix", "observe", "prepare", "finish", "details", "loss_weights", "may_observe"} <= set(hooks_of(Mixer))
    assert {"get_weighted_loss", "training_step", "needs_sources"} <= set(hooks_of(Weighter))
    assert {"bind", "state_dict", "load_state_dict"} <= set(hooks_of(Component))


@pytest.mark.parametrize(("kind", "hook"), WALK, ids=lambda value: getattr(value, "name", value))
def test_a_component_that_exits_in_any_hook_is_named_and_the_run_has_failed(kind, hook, tmp_path, monkeypatch):
    cls = ending(NEEDS.get(hook, KINDS[kind][1]), hook, SystemExit(0))
    with pytest.raises(ComponentError, match=r"SystemExit: 0") as caught:
        run_all(kind, cls, tmp_path, monkeypatch, hook)
    assert caught.value.exit_code == 1
    assert "ends" in str(caught.value).lower()  # its name, or that of its class
    assert isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_ctrl_c_inside_of_a_component_stays_what_it_is(kind, tmp_path, monkeypatch):
    hook = {SELECTOR: "select", MIXER: "mix", ORDER: "arrange", WEIGHTER: "get_weighted_loss"}[kind]
    with pytest.raises(KeyboardInterrupt):
        run_all(kind, ending(KINDS[kind][1], hook, KeyboardInterrupt()), tmp_path, monkeypatch, hook)


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), GeneratorExit(), asyncio.CancelledError(), Ends()])
def test_every_error_that_is_no_exception_is_a_fault_of_whom_it_came_from(error):
    with pytest.raises(ComponentError, match=f"^mixer 'x' raised {type(error).__name__}"), blaming("mixer 'x'"):
        raise error

    class Quits:
        def __init__(self):
            raise error

    with pytest.raises(ComponentError, match=rf"the constructor of .*Quits raised {type(error).__name__}"):
        construct(Quits, {}, {})


@pytest.mark.parametrize("line", ["import sys; sys.exit(0)", "raise SystemExit", "exit()"])
def test_a_plugin_file_that_exits_at_import_is_named(line, tmp_path):
    file = tmp_path / "quits.py"
    file.write_text(f"x = 1\n{line}\n")
    for _ in range(2):  # nothing half-imported is left over
        with pytest.raises(ComponentError, match=r"plugin file .*quits\.py, line 2 raised SystemExit") as caught:
            load_plugin_files([str(file)])
    assert caught.value.exit_code == 1


def test_a_package_that_exits_at_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "quits_at_import.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = registry.EntryPoint("quits", "quits_at_import:Rows", SELECTOR.group)
    with pytest.raises(ComponentError, match=r"selector 'quits' of the package .* raised SystemExit: 0"):
        component_classes._load(SELECTOR, point)
    with pytest.raises(ComponentError, match=r"the plugin 'quits' of the package .* raised SystemExit: 0"):
        plugins._load(plugin_manager(), point)


HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("dataflex_"))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("no")], ids=["exits", "raises"])
def test_a_hook_that_exits_or_raises_is_named_with_its_plugin(hook, error, tmp_path, monkeypatch):
    from dataflex import hookimpl

    def ends():
        raise error

    manager, plugin = plugin_manager(), SimpleNamespace(**{hook: hookimpl(ends)})
    manager.register(plugin, name="one that ends")
    try:
        called = commands.all_commands
        if hook != "dataflex_cli_commands":
            called = functools.partial(run_all, SELECTOR, Rows, tmp_path, monkeypatch, hook)
        with pytest.raises(ComponentError, match=f"plugin 'one that ends' in {hook} raised {type(error).__name__}"):
            called()
    finally:
        manager.unregister(plugin)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_command_of_dataflex_that_is_ended_from_below_has_failed_and_says_where(name, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_built_in", lambda name: Command("", "", lambda argv: sys.exit(0)))
    assert main.run([name]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: something ended the process with SystemExit: 0 at ")
    assert "test_component_exits.py, line " in said


def test_a_command_of_a_plugin_may_exit_as_a_program_does(monkeypatch):
    monkeypatch.setattr(commands, "_from_plugins", lambda: {"mine": Command("", "", lambda argv: sys.exit(3))})
    with pytest.raises(SystemExit, match="3"):
        main.run(["mine"])


def test_a_plugin_file_that_raises_is_refused_as_before(tmp_path):
    file = tmp_path / "raises.py"
    file.write_text("raise OSError('no')\n")
    with pytest.raises(BrokenPluginError, match=r"raises\.py, line 1: OSError: no"):
        load_plugin_files([str(file)])
