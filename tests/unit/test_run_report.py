"""``run_report`` and ``trainer.report()``: the page of a run as an object that a notebook shows."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest
from dataflex import dynamic, run_report
from dataflex.core.errors import ConfigError
from dataflex.report.report_page import report_html
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from transformers import Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 1}


def made(folder, base=Trainer):
    arguments = tiny_training_args(folder, max_steps=-1, per_device_train_batch_size=2)
    cls = dynamic(base, selector="random", **STEPS)
    return cls(model=tiny_model(), args=arguments, train_dataset=TokenRows(8), data_collator=pad_collate)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = made(tmp_path_factory.mktemp("runs") / "one")
    trainer.train()
    return trainer


def without_time(page):
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", page)


def test_a_notebook_shows_the_page_of_the_command_line_in_a_frame_that_reaches_nothing_outside(trained):
    report = trained.report(height=500)
    assert without_time(report.html) == without_time(report_html([trained.args.output_dir]))
    frame = report._repr_html_()
    assert frame.count("<") == 2, "no mark of the page stands outside of the attribute"
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    assert "height: 500px" in frame
    shown = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert shown.replace('<base href="about:srcdoc">', "", 1) == report.html
    assert '<base href="about:srcdoc">' in shown, "a link to a place of the page would open the notebook in the frame"


def test_a_report_is_saved_as_a_file_or_into_a_folder(trained, tmp_path):
    report = run_report(trained, trained.args.output_dir)
    assert report.save(tmp_path / "page.html").read_text(encoding="utf-8") == report.html
    assert report.save(str(tmp_path)) == tmp_path / "dataflex_report.html"
    assert repr(report).startswith(f"<report of {trained.args.output_dir}, ")


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ((), r"found no run -> give it an output_dir or a trainer"),
        ((3,), r"found 3, allowed: an output folder, or a trainer that dynamic\(\) has made"),
        (("nowhere",), r"nowhere: no such folder -> name the output_dir"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(runs, words):
    with pytest.raises(ConfigError, match=words):
        run_report(*runs)


def test_a_trainer_that_has_not_begun_has_no_run_to_show(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        made(tmp_path / "new").report()


def test_a_trainer_with_a_report_of_its_own_keeps_it(tmp_path):
    class Own(Trainer):
        def report(self):
            return "mine"

    assert made(tmp_path, Own).report() == "mine"


def test_reports_of_folders_import_no_torch():
    code = "import sys; from dataflex import run_report; assert 'torch' not in sys.modules; run_report.__name__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
