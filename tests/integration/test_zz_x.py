import sys
sys.path.insert(0,'/work/main/tests/integration')
from conftest import *
def test_a(train,tmp_path):
    (tmp_path/"run").write_text("x")
    print(train("select_loss","warmup_step=2","update_step=2","update_times=1"))
def test_b(train,tmp_path,capsys):
    (tmp_path/"f").write_text("x")
    print(train("select_loss","warmup_step=2","update_step=2","update_times=1", out="f/run"))
def test_c(train,tmp_path,capsys):
    assert train("select_loss","warmup_step=2","update_step=2","update_times=2","save_steps=2")==0
    import shutil
    shutil.rmtree(tmp_path/"run"/"checkpoint-6")
    assert train("select_loss","warmup_step=2","update_step=2","update_times=2","save_steps=2","resume_from_checkpoint=true")==0
