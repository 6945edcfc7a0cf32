"""docs/snippets/python: each script runs as it stands, with a tiny model in place of the real one, and is shown."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import transformers
import trl
from dataflex.config.resolved import recorded_run
from dataflex.testing import device, tiny_model
from packaging.version import Version
from sft_rows import chat_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = sorted((DOCS / "snippets" / "python").glob("*.py"))
STEPS = {
    "dpo": 6, "every_axis": 8, "mixture": 8, "notebook": 6, "own_weighter": 6, "plain_trainer": 10, "resume": 8,
    "sft_less": 8,
}  # fmt: skip
OLD_TRL = Version(trl.__version__) < Version("0.26") and Version(transformers.__version__) >= Version("5")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny model with a tokenizer that can chat."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = chat_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(script, model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODEL", str(model))
    if device().type == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return runpy.run_path(str(script), run_name="__main__")


def test_every_script_has_its_number_of_steps_here():
    assert [script.stem for script in SCRIPTS] == sorted(STEPS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_trains_to_its_end_and_leaves_its_record(script, model, tmp_path, monkeypatch):
    if script.stem == "dpo" and OLD_TRL:
        pytest.skip("TRL before 0.26 cannot make a DPOTrainer beside transformers 5: it needs model.warnings_issued")
    names = run(script, model, tmp_path, monkeypatch)
    state = names["trainer"].state
    assert state.global_step == state.max_steps == STEPS[script.stem]
    recorded = recorded_run(names["trainer"].args.output_dir)
    assert recorded is not None
    if script.stem == "notebook":
        page = (tmp_path / "loss_or_random.html").read_text(encoding="utf-8")
        assert page == names["report"].html
        assert names["report"]._repr_html_().startswith('<iframe title="dataflex report"')


def test_the_resumed_example_goes_on_when_it_is_started_again(model, tmp_path, monkeypatch):
    script = DOCS / "snippets" / "python" / "resume.py"
    stopped = script.read_text(encoding="utf-8").replace("trainer = dynamic(", "trainer = stopping(", 1)
    assert "stopping(" in stopped

    def stopping(base, **keywords):
        from dataflex import dynamic

        class Interrupt(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    raise KeyboardInterrupt

        def made(**given):
            return dynamic(base, **keywords)(**given, callbacks=[Interrupt()])

        return made

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", str(model))
    with pytest.raises(KeyboardInterrupt):
        exec(compile(stopped, "resume.py", "exec"), {"stopping": stopping, "__name__": "__main__"})
    names = run(script, model, tmp_path, monkeypatch)
    assert names["stopped_before"]
    assert names["trainer"].state.global_step == 8


def test_the_page_of_examples_shows_each_script_as_it_is():
    page = (DOCS / "python-examples.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        shown = f"```python\n{script.read_text(encoding='utf-8')}```"
        assert shown in page, f"docs/python-examples.md shows another {script.name}: copy the file's text into it"
    assert page.count("```python\n") == len(SCRIPTS)
