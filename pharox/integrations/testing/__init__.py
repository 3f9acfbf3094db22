"""A pool of real proxies on loopback that behave as they are told, to test crawlers with.

    from pharox.integrations.testing import Behaviour, proxy_lab

    with proxy_lab({"good": Behaviour(), "strict": Behaviour(blocks_after=3)}) as lab:
        crawl(lab.manager, lab.pool_name, lab.url("/page"))
        assert lab.held == []

Nothing leaves the machine: whatever host is asked for, a site in this process answers, as the proxy
that was taken is told to. The fixture ``proxy_lab`` of pytest is in :mod:`.fixtures`.
"""

from .behaviour import FIVE, Behaviour, Script, Verdict
from .lab import ProxyLab, Told, proxy_lab
from .site import Seen

__all__ = ["FIVE", "Behaviour", "ProxyLab", "Script", "Seen", "Told", "Verdict", "proxy_lab"]
