"""The chat page in a real browser: it streams, stops, remembers, begins anew, asks for a key and shows errors."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from toy_checks import PATIENCE
from toy_model import render
from toy_wire import read_inputs

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("aiohttp")

from browser import tab

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
READY = "document.getElementById('model').options.length === 1"
IDLE = "document.getElementById('stop').hidden"


@pytest.fixture
def visit(serve, tmp_path):
    """Run `use(page)` on the page of a gateway with these keys in front of the toy."""

    def run(use, keys=()):
        url = serve(keys)

        async def main():
            async with tab(CHROMIUM, tmp_path / "profile", f"{url}/") as page:
                await use(page)

        asyncio.run(main())

    return run


def said(role):
    """JavaScript for the texts of a role."""
    return f"[...document.querySelectorAll('.{role}')].map((element) => element.textContent)"


def prompts(toy):
    sent = [read_inputs(request) for request in toy.requests if "file" not in request.parameters]
    return [toy.tokenizer.decode(tensors["input_ids"].tolist()) for tensors in sent]


def test_a_conversation(toy, visit, tmp_path):
    toy.max_length, toy.eos_token_ids, toy.delay = 60, "", 0.2

    async def use(page):
        await page.until(READY)
        assert not await page.run("document.getElementById('key-label').offsetParent")  # no key is asked for
        await page.type("Hi <b>")
        await page.until(f"{said('assistant')}[0]?.length > 3")
        assert not await page.run(IDLE)  # it streams
        toy.delay = 0.0
        await page.until(IDLE)
        first = (await page.run(said("assistant")))[0]
        assert prompts(toy)[0] == render([{"role": "user", "content": "Hi <b>"}])
        assert await page.run(said("user")) == ["Hi <b>"]
        toy.max_length, toy.delay = 4096, 0.2
        await page.type("And?")
        await page.until(f"{said('assistant')}[1]?.length > 3")
        await page.screenshot(tmp_path / "page.png")
        await page.run("document.getElementById('stop').click()")
        await page.until(IDLE)
        assert await asyncio.to_thread(toy.cancelled.wait, PATIENCE)
        assert prompts(toy)[1].startswith(f"user: Hi <b>\nassistant: {first}\nuser: And?")
        await page.run("document.getElementById('reset').click()")
        assert await page.run(said("message")) == []

    visit(use)
    assert (tmp_path / "page.png").stat().st_size > 1000


def test_an_error_is_shown(toy, visit):
    toy.error_after = (1, "CUDA out of memory")

    async def use(page):
        await page.until(READY)
        await page.type("Hi")
        await page.until(f"{said('error')}[0]?.includes('CUDA out of memory')")
        await page.until(IDLE)

    visit(use)


def test_what_was_refused_is_as_if_it_had_not_been_said(toy, visit):
    toy.max_length = 60

    async def use(page):
        await page.until(READY)
        await page.type("x" * 80)
        await page.until(f"{said('error')}.length && {IDLE}")
        assert await page.run("document.getElementById('input').value") == "x" * 80
        assert await page.run(f"[{said('user')}, {said('assistant')}]") == [[], []]
        await page.run("document.getElementById('input').value = ''")
        await page.type("Hi")
        await page.until(f"{said('assistant')}[0]?.length > 3")

    visit(use)
    assert prompts(toy)[-1] == render([{"role": "user", "content": "Hi"}])


def test_a_phone_shows_all_of_it(visit):
    long_name = "new Option('a-model-with-a-very-long-name-1.5b-instruct:and-an-adapter')"

    async def use(page):
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True
        )
        await page.until(READY)
        await page.run(f"document.getElementById('model').replaceChildren({long_name})")
        await page.run("document.getElementById('key-label').hidden = false")
        assert await page.run("document.documentElement.scrollWidth") == 360
        assert await page.run("document.getElementById('send').getBoundingClientRect().bottom") <= 640
        assert page.errors == []

    visit(use)


def test_a_key_is_asked_for(visit):
    async def use(page):
        await page.until("!document.getElementById('key-label').hidden")
        await page.run("document.getElementById('key').focus()")
        await page.type("secret")
        await page.until(READY)

    visit(use, keys=["secret"])
