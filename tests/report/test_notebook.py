"""A notebook that trains, is interrupted, goes on and shows the report below its cells: run for real, and opened."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets that Jupyter leaves open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CELLS = {
    "setup": """
from dataflex import dynamic, run_report
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from transformers import Trainer, TrainerCallback

def made(folder):
    arguments = tiny_training_args(
        folder, max_steps=-1, per_device_train_batch_size=2, disable_tqdm=False, logging_steps=1,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
    )
    cls = dynamic(Trainer, selector="loss", warmup_step=2, update_step=2, update_times=3)
    rows = {"train_dataset": TokenRows(24), "eval_dataset": TokenRows(6, seed=3), "data_collator": pad_collate}
    return cls(model=tiny_model(), args=arguments, **rows)

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt
""",
    "whole": 'trainer = made("runs/whole")\ntrainer.train()\nprint(trainer.state.global_step)',
    "report": "trainer.report()",
    "interrupted": 'trainer = made("runs/cell")\ntrainer.add_callback(Interrupt())\ntrainer.train()',
    "two": 'run_report(trainer, "runs/whole")',
    "again": 'trainer = made("runs/cell")\ntrainer.train()',
    "resumed": "trainer.train(resume_from_checkpoint=True)\nprint(trainer.state.global_step)",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    """Name of a cell -> the cell as the kernel left it, and the notebook as HTML under ``page``."""
    client = pytest.importorskip("nbclient", reason="needs Jupyter: pip install nbclient nbconvert ipykernel")
    nbconvert = pytest.importorskip("nbconvert", reason="needs Jupyter: pip install nbclient nbconvert ipykernel")
    pytest.importorskip("ipykernel", reason="needs Jupyter: pip install nbclient nbconvert ipykernel")
    import nbformat

    folder = tmp_path_factory.mktemp("notebook")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.values()])
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="")
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="Python", language="python", env=dict(os.environ))
    client.NotebookClient(
        book, km=manager, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in book.cells:  # bars of tqdm are widgets, whose script an exported page takes from the network
        for output in cell.outputs:
            if "data" in output:
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
    text, _ = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(book)
    page = folder / "notebook.html"
    page.write_text(f"<!doctype html><meta charset='utf-8'>{text}", encoding="utf-8")
    return dict(zip(CELLS, book.cells, strict=True)) | {"page": page}


def said(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def raised(cell) -> str:
    return next((f"{output.ename}: {output.evalue}" for output in cell.outputs if output.output_type == "error"), "")


def test_a_cell_trains_with_the_notebooks_own_progress_table(executed):
    assert not raised(executed["setup"])
    assert not raised(executed["whole"])
    assert said(executed["whole"]).strip() == "8"
    tables = [output.data.get("text/html", "") for output in executed["whole"].outputs if "data" in output]
    assert any("<progress value='8' max='8'" in table and "Validation Loss" in table for table in tables)


def test_an_interrupted_cell_leaves_a_record_that_is_shown_and_resumed(executed):
    assert raised(executed["interrupted"]).startswith("KeyboardInterrupt")
    assert not raised(executed["two"])
    assert "srcdoc" in executed["two"].outputs[-1].data["text/html"]
    assert "runs/cell holds a run that was stopped" in raised(executed["again"])
    assert "train(resume_from_checkpoint=True)" in raised(executed["again"])
    assert not raised(executed["resumed"])
    assert said(executed["resumed"]).strip() == "8"


@pytest.mark.parametrize("width", [1280, 700])
def test_the_report_is_drawn_inside_of_the_notebook_without_a_message_of_the_browser(executed, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if not _own(request.url, executed["page"]) else None)
    page.goto(executed["page"].as_uri())
    frames = page.locator('iframe[title="dataflex report"]')
    assert frames.count() == 2
    for number in range(2):
        frames.nth(number).scroll_into_view_if_needed()
        inside = frames.nth(number).content_frame
        inside.locator(".plot").first.scroll_into_view_if_needed()
        inside.locator(".plot canvas").first.wait_for(timeout=30_000)
        assert frames.nth(number).bounding_box()["height"] == 760
    one, first = frames.nth(0).content_frame, page.url
    assert one.locator("h1").inner_text() == "whole"
    one.get_by_role("link", name="Seen").click()
    assert one.locator("h1").inner_text() == "whole", "the frame shows the report, not the notebook that is around it"
    assert page.url == first
    assert faults == []
    context.close()


def _own(url: str, page: Path) -> bool:
    return url.startswith(("data:", "about:")) or url.partition("#")[0] == page.as_uri()
