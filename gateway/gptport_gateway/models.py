"""The models behind the gateway, each with a client of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_client import TLS, AsyncClient, ModelNotFound, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY = "any"  # the listing needs a client, and the client a name


class Models:
    """The text models of one Triton."""

    def __init__(self, url: str, tls: TLS | None = None, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._tls = tls
        self._headers = headers
        self._clients: dict[str, AsyncClient] = {}
        self._any = self._client(ANY)

    async def names(self) -> list[str]:
        """Those that are ready, in order."""
        ready = {model.name for model in await self._any.models() if model.ready}
        return sorted([name for name in ready if await self._is_text(name)])

    async def listed(self) -> list[str]:
        """What requests may name as a model: those that are ready, and each adapter as NAME:ADAPTER."""
        found = []
        for name in await self.names():
            found.append(name)
            found += [f"{name}:{adapter}" for adapter in await (await self.client(name)).adapters()]
        return found

    async def client(self, name: str) -> AsyncClient:
        """The client of a model.

        Raises:
            ModelNotFound: the server has no such text model.
        """
        if name not in self._clients:
            names = await self.names()
            if name not in names:
                raise ModelNotFound(f"there is no model {name!r}; there are: {', '.join(names) or 'none'}")
            self._clients.setdefault(name, self._client(name))
        return self._clients[name]

    async def check(self) -> None:
        """Raise a GptportError unless the server answers."""
        await self._any.models()

    async def close(self) -> None:
        """Cancel what runs and close the connections."""
        for client in (self._any, *self._clients.values()):
            await client.aclose()

    async def _is_text(self, name: str) -> bool:
        try:
            async with self._client(name) as client:
                return (await client.model_config()).kind == "text"
        except ProtocolError:  # it is none of gptport's
            return False

    def _client(self, name: str) -> AsyncClient:
        return AsyncClient(self._url, model=name, tls=self._tls, headers=self._headers)
