"""The line of Triton's log that says what went wrong."""

from __future__ import annotations

from gptport.server_log import last_error

ALWAYS = 'E1126 03:44:37.659880 4218 server.cc:241] "CudaDriverHelper has not been initialized."\n'
LOG = """\
I1126 03:44:37.659999 4218 server.cc:300] "hello"
E1126 03:44:37.666292 4218 model_repository_manager.cc:1460] "Poll failed for model directory 'mini': no config"
E1126 03:44:37.669829 4218 tritonserver.cc:2607] "Internal: failed to load all models"
"""
CRASH = """\
terminate called after throwing an instance of 'boost::interprocess::lock_exception'
  what():  boost::interprocess::lock_exception
Signal (6) received.
"""


def written(folder, text):
    path = folder / "log"
    path.write_text(text)
    return path


def test_the_last_error_counts(tmp_path):
    assert last_error(written(tmp_path, ALWAYS + LOG)) == '"Internal: failed to load all models"'
    assert last_error(written(tmp_path, ALWAYS + LOG + CRASH)) == "boost::interprocess::lock_exception"
    assert last_error(written(tmp_path, "tritonserver: unrecognized option '--x'\n")).endswith("'--x'")


def test_of_those_about_something(tmp_path):
    log = written(tmp_path, ALWAYS + LOG)
    assert last_error(log, "'mini'") == "\"Poll failed for model directory 'mini': no config\""
    assert last_error(log, "'maxi'") == ""


def test_what_each_server_without_a_gpu_logs_is_none(tmp_path):
    assert last_error(written(tmp_path, ALWAYS)) == ""
    assert last_error(None) == ""
