"""`rmt demo` in a real browser: Debian's chromium, headless, on the loopback address."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rmt_jax.cli import main
from rmt_jax.data import open_source
from rmt_jax.data.config import DataConfig
from tests.training.conftest import REPOSITORY
from tests.training.processes import free_port

NOTEBOOKS = REPOSITORY / "notebooks"
PATIENCE = 120_000  # milliseconds, of which a compilation is most
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def served(weights: str, folder: pathlib.Path) -> Iterator[str]:
    """The address of a page that is served by a process of its own, until that is asked to end."""
    port = free_port()
    command = [sys.executable, "-m", "rmt_jax.cli", "demo", str(NOTEBOOKS / weights), "--port", str(port)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"rmt_nano on http://127.0.0.1:{port}/, until Ctrl-C\n", (folder / "log").read_text()
            with pytest.raises(ConnectionRefusedError):  # served on no other address of this machine
                socket.create_connection(("127.0.0.2", port)).close()
            yield f"http://127.0.0.1:{port}/"
            process.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests run in the background
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def opened(browser: Browser, address: str, picture: pathlib.Path) -> Page:
    """The page with a picture in it, everything shown."""
    page = browser.new_page(viewport={"width": 1200, "height": 1600})
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: check_address(request.url, address))
    page.goto(address)
    page.locator("#picture input[type=file]").set_input_files(picture)
    expect(page.locator("#words")).to_contain_text("The largest weight is", timeout=PATIENCE)
    return page


def check_address(url: str, address: str) -> None:
    assert url.startswith((address, "data:", "blob:")), f"the page asks for {url}"


@pytest.mark.slow
def test_a_classifier_and_what_it_attends_to(browser: Browser, tmp_path: pathlib.Path, digits_dir: str) -> None:
    source = open_source(DataConfig("digits", dir=digits_dir, eval_split="test"), "test")
    example = source[next(index for index in range(len(source)) if source[index].label == 4)]
    (tmp_path / "four.png").write_bytes(example.image)
    with served("rmt_nano_digits.safetensors", tmp_path) as address:
        page = opened(browser, address, tmp_path / "four.png")
        expect(page.locator("#classes")).to_contain_text(re.compile(r"Classes\s+4\s+4\s*\d\d%"), timeout=PATIENCE)
        words, picture = page.locator("#words"), page.locator("#seen img")
        expect(words).to_contain_text("Stage 1, block 0, the mean of 2 heads: row 4, column 4 of 8x8 positions")
        before = picture.get_attribute("src")
        box = picture.bounding_box()
        assert box is not None
        # The middle of the cell in row 1, column 6 of eight.
        picture.click(position={"x": box["width"] * 6.5 / 8, "y": box["height"] * 1.5 / 8})
        expect(words).to_contain_text("row 1, column 6 of 8x8 positions", timeout=PATIENCE)
        expect(picture).not_to_have_attribute("src", str(before))
        page.locator("#stage input").click()
        page.get_by_role("option", name="3", exact=True).click()
        expect(words).to_contain_text("Stage 3, block 1, the mean of 6 heads", timeout=PATIENCE)
        page.locator("#head input").click()
        page.get_by_role("option", name="5", exact=True).click()
        expect(words).to_contain_text("Stage 3, block 1, head 5: row 0, column 1 of 2x2 positions", timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["rmt_nano_mask_rcnn_digits", "rmt_nano_semantic_fpn_digits"])
def test_objects_and_classes_of_pixels(browser: Browser, weights: str, tmp_path: pathlib.Path) -> None:
    """On a photograph without digits: that there is something to see, and that its size is the picture's."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "noise.png")
    with served(f"{weights}.safetensors", tmp_path) as address:
        page = opened(browser, address, tmp_path / "noise.png")
        drawn = page.locator("#drawn img")
        expect(drawn).to_be_visible(timeout=PATIENCE)
        width, height = (drawn.evaluate(f"image => image.natural{side}") for side in ("Width", "Height"))
        assert width * 96 == height * 128
        if "mask_rcnn" in weights:
            expect(page.locator("#objects")).to_contain_text("score (%)")
        else:
            expect(page.locator("#classes")).to_contain_text("background")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "--port=0: expected 1 to 65535"),
        (["--samples", "nothing.png"], "--samples: there is no file nothing.png"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(NOTEBOOKS / "rmt_nano_digits.safetensors"), *words]) == 2
    assert message in capsys.readouterr().err
