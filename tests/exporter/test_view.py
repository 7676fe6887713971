"""`gptport view`, on a free port, without a browser."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request


def test_netron_shows_the_graph_until_ctrl_c(gpt2, exported):
    version = exported(gpt2).folders["gpt2"]
    command = [sys.executable, "-m", "gptport", "view", str(version), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stderr.readline()
            url = re.search(r"model\.onnx is shown at (http://127\.0\.0\.1:\d+) until Ctrl-C", said)[1]
            with urllib.request.urlopen(url, timeout=100) as page:
                assert b"netron" in page.read().lower()
        finally:
            process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=100)
    assert (process.returncode, out, said) in ((0, "", ""), (130, "", "gptport: interrupted\n"))
