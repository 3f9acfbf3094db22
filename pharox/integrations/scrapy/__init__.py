"""pharox in Scrapy: every request goes through a leased proxy.

.. code-block:: python

    ADDONS = {"pharox.integrations.scrapy.PharoxAddon": 500}
    PHAROX_POOL = "residential"

The add-on puts two parts in place. A download handler around Scrapy's own leases a proxy when the
download slot lets a request go, and gives it back when the response is there: a request that waits
for its turn holds no proxy, and one that waits for a proxy takes up its slot. A downloader
middleware has what was refused, or failed because of a proxy, tried again with another one.
"""

from __future__ import annotations

from .._core import require

require("scrapy", "2.13")

# Scrapy is there.
from .addon import PharoxAddon  # noqa: E402
from .handlers import LeasedHttpHandler, LeasedHttpsHandler  # noqa: E402
from .middleware import PharoxMiddleware  # noqa: E402

__all__ = ["LeasedHttpHandler", "LeasedHttpsHandler", "PharoxAddon", "PharoxMiddleware"]
