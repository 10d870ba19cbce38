"""The real engine behind the real commands: a job is posted, its worker killed, the result read."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
from conftest import Small
from PIL import Image
from small_model import photo_like

from jobs.machines import until
from service.engine.engine import Engine
from service.settings import Settings
from service.store.write import write_model


def test_a_posted_picture_gets_smaller_and_its_name_with_it_and_decodes_elsewhere(
    tmp_path: Path, small: Small, numpy_engine: Engine
) -> None:
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    rgb = photo_like(75, 106, 1)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    settings = Settings(
        state=tmp_path,
        store=tmp_path / "store",
        port=0,
        device="cpu",
        threads=1,
        job_step_s=0.3,
        job_max_s=6.0,
        objects_url=str(tmp_path / "objects"),
        objects_write=True,
        graphics=False,  # the small model is so bad that the picture would be exact at once
    )
    variables = os.environ | settings.as_environment()
    log = tmp_path / "err"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve"], env=variables, stderr=errors
        ) as server,
    ):
        try:
            until(lambda: re.search(r"running on (http://[0-9.:]+)", log.read_text()) is not None)
            match = re.search(r"running on (http://[0-9.:]+)", log.read_text())
            assert match is not None
            with httpx.Client(base_url=match[1], timeout=60) as client:
                until(lambda: client.get("/readyz").status_code == 200)
                named = client.put("/pictures/a.png?rate=4&effort=1", content=file.getvalue())
                posted = client.post("/adapt?rate=4&effort=1", content=file.getvalue())
                assert posted.status_code == 202, posted.text
                path = posted.headers["location"]
                until(lambda: (client.get(path).json()["step"] or 0) > 0)
                plain = client.post("/compress?rate=4", content=file.getvalue())
                (worker,) = _children(server.pid)
                os.kill(worker, signal.SIGKILL)
                until(lambda: client.get(path).json()["status"] not in ("queued", "running"))
                job = client.get(path).json()
                assert job["status"] == "succeeded", job
                result = client.get(f"{path}/result")
                assert named.json()["links"]["stream"] and path.endswith(named.json()["job"])
                stream = "/pictures/a.png/@stream"
                until(lambda: client.get(stream).content == result.content)
                first = client.get(named.json()["links"]["stream"])
        finally:
            server.terminate()
        assert server.wait(60) == 0
    assert first.content == plain.content and job["first_bytes"] == len(plain.content)
    assert job["bytes"] == len(result.content)
    decoded = numpy_engine.decompress(result.content).picture.rgb
    mse = np.mean((decoded.astype(float) - rgb) ** 2)
    assert abs(10 * np.log10(255**2 / mse) - job["psnr_db"]) < 0.05


def _children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
