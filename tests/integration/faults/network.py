"""A network between sites and SuperLink that can be slow, narrow, lossy or cut: a TCP proxy in user space.

While it is cut nothing comes through, and nobody is told: connections stay open, as when a router dies. TCP
hides a lost packet behind a retransmission, which costs about one more round trip and holds up what
comes after it. That is what `loss` does here to one read in so many.
"""

import asyncio
import contextlib
import random
import threading
import time
from types import TracebackType
from typing import Self

_READ_BYTES = 65536
_SECONDS_BETWEEN_TRIES = 0.2


class Network:
    """Forwards connections on `host:port` to `target_host:target` while it is entered.

    Attributes:
        delay_seconds: from one end to the other.
        loss: share of the reads that come a round trip late.
        upload_bytes_per_second: of each connection, towards the target; 0: as fast as it goes.
    """

    def __init__(
        self, port: int, target: int, host: str = "127.0.0.1", target_host: str = "127.0.0.1"
    ) -> None:
        self.port, self.delay_seconds, self.loss, self.upload_bytes_per_second = port, 0.0, 0.0, 0.0
        self._host, self._target, self._is_cut = host, (target_host, target), False
        self._random = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._connect, self._host, self.port)
        asyncio.run_coroutine_threadsafe(start, self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self, seconds: float) -> None:
        """Let nothing through for a while."""
        self._is_cut = True
        time.sleep(seconds)
        self._is_cut = False

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                break
            except OSError:  # SuperLink is away; a packet to it would be sent again and again
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
        await asyncio.gather(
            self._pump(reader, far_writer, is_upload=True), self._pump(far_reader, writer, is_upload=False)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_upload: bool
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        delivery = asyncio.create_task(self._deliver(under_way, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                round_trip = 2 * self.delay_seconds
                late = round_trip if self._random.random() < self.loss else 0.0
                await under_way.put((time.monotonic() + self.delay_seconds + late, data))
                if is_upload and self.upload_bytes_per_second:
                    await asyncio.sleep(len(data) / self.upload_bytes_per_second)
        await under_way.put((0.0, b""))
        await delivery

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        is_open = True
        while (item := await under_way.get())[1]:
            await asyncio.sleep(max(0.0, item[0] - time.monotonic()))
            while self._is_cut:
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
            if is_open:
                try:
                    writer.write(item[1])
                    await writer.drain()
                except OSError:
                    is_open = False  # what is still under way is dropped
        writer.close()
