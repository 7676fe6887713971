"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.request
from contextlib import asynccontextmanager

import aiohttp

from toy_checks import PATIENCE


class Tab:
    """One page; `errors` is what its console said of them so far."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        self.errors = []

    async def call(self, method, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async for message in self._socket:
            answer = json.loads(message.data)
            if answer.get("id") == self._number:
                return answer["result"]
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
        raise ConnectionError("the browser is gone")

    async def run(self, script):
        """The value of a JavaScript expression; promises are awaited."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition, seconds=PATIENCE):
        """Wait until a JavaScript expression is true."""
        wait = (
            f"new Promise((done) => {{ const end = Date.now() + {seconds * 1000}; const look = () => "
            f"({condition}) || Date.now() > end ? done(Boolean({condition})) : setTimeout(look, 20); look(); }})"
        )
        assert await self.run(wait), f"{condition} never was: {await self.run('document.body.innerText')}"

    async def type(self, text):
        """Type into what has the focus, and press Enter."""
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    async def screenshot(self, path):
        """Write what the page looks like as PNG."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@asynccontextmanager
async def tab(chromium, profile, url):
    """A tab with `url` in a browser that ends with it."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
    ]
    with subprocess.Popen([chromium, *options, "about:blank"], stderr=subprocess.PIPE, text=True) as process:
        try:
            address = (
                next(line for line in process.stderr if "DevTools listening" in line)
                .split("ws://")[1]
                .split("/")[0]
            )
            pages = json.loads(urllib.request.urlopen(f"http://{address}/json/list").read())
            page = next(each for each in pages if each["type"] == "page")
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket,
            ):
                opened = Tab(socket)
                await opened.call("Log.enable")
                await opened.call("Runtime.enable")
                await opened.call("Page.navigate", url=url)
                await opened.until("location.href !== 'about:blank' && document.readyState === 'complete'")
                yield opened
        finally:
            process.terminate()
            process.stderr.close()
