"""A name server that answers every question with the same addresses, as Docker's does for a network alias."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class NameServer:
    """Answers A questions on a port of 127.0.0.1 until it is closed.

    Attributes:
        address: host:port.
        answers: the IPv4 addresses; may be changed while it runs.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                question, asker = self._socket.recvfrom(4096)
                self._socket.sendto(self._answer(question), asker)
            except OSError:
                return

    def _answer(self, question: bytes) -> bytes:
        """RFC 1035, 4.1: the header with the answers' count, the question, and for each answer a pointer to its name."""
        end = question.index(b"\0", 12) + 5
        of_type_a = question[end - 4 : end - 2] == b"\0\1"
        found = self.answers if of_type_a else []
        header = question[:2] + struct.pack("!5H", 0x8180, 1, len(found), 0, 0)
        records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in found]
        return header + question[12:end] + b"".join(records)
