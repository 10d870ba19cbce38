"""The plug-in in a child of os.fork: models are opened anew there, and the child can end.

Every script runs in a process of its own with two threads for torch, and within a time limit: what
is tested for is waiting for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Small
from small_model import photo_like
from test_architecture import FILES, imports, module_of

from service.store.write import write_model

REPO = Path(__file__).parents[2]

BEGIN = """
import io, os, sys
from PIL import Image

source = Image.open(sys.argv[1])
source.load()

def save():
    out = io.BytesIO()
    source.save(out, format="RKP")
    return out.getvalue()

def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()

def in_child(work):
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def said(text):
    print(text, flush=True)

"""
AFTER_USE = """
import rankpress_pillow
data = save()
shown = pixels(data)
print(in_child(lambda: said((save() == data, pixels(data) == shown))))
print(in_child(lambda: None))
print(save() == data)
"""
AFTER_TORCH = """
import torch
a = torch.ones(512, 512)
a @ a
def work():
    import rankpress_pillow
    said(len(save()) > 1000)
print(in_child(work))
"""
GRANDCHILD = """
import rankpress_pillow
data = save()
print(in_child(lambda: said((save() == data, in_child(lambda: said(save() == data))))))
"""
DROPPED = """
import rankpress_pillow
data = save()
pixels(data)
print(in_child(lambda: (rankpress_pillow.engine_of.cache_clear(), said(save() == data))))
"""
WHILE_SAVING = """
import threading
import rankpress_pillow
data = save()
stop = threading.Event()
def go_on():
    while not stop.is_set():
        save()
thread = threading.Thread(target=go_on)
thread.start()
print([in_child(lambda: said(save() == data)) for _ in range(2)])
stop.set()
thread.join()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, small: Small) -> dict[str, str]:
    """Variables of a process that has the small model and two threads."""
    store = tmp_path_factory.mktemp("store")
    write_model(store / "small", small.stored, small.base)
    ours = {"PYTHONPATH": f"{REPO / 'service/pillow'}:{REPO}", "RANKPRESS_STORE": str(store),
            "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    return os.environ | ours


@pytest.mark.platform
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (AFTER_USE, ["(True, True)", "0", "0", "True"]),
        (AFTER_TORCH, ["True", "0"]),
        (GRANDCHILD, ["True", "(True, 0)", "0"]),
        (DROPPED, ["True", "0"]),
        (WHILE_SAVING, ["True", "True", "[0, 0]"]),
    ],
    ids=["after-use", "after-torch", "grandchild", "dropped", "while-saving"],
)
def test_a_forked_child_saves_loads_and_ends(
    script: str, lines: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(photo_like(512, 512, 1)).save(tmp_path / "photo.png")
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, str(tmp_path / "photo.png")],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            shown, errors = process.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # children that wait for ever too
    assert shown.splitlines() == lines, errors


def test_one_file_imports_onnxruntime_and_turns_its_telemetry_off() -> None:
    users = [module_of(f) for f in FILES if "onnxruntime" in set(imports(f))]
    assert users == ["service.transforms.onnx_session"]
    code = "import service.transforms.onnx_session, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "1\n"
