"""Add up the metrics of all processes of a server, including those that ended.

The files of ended processes are merged into an archive with one file per type, so the number of
files does not grow with the number of workers over time. One small file, the manifest, is replaced
atomically when the archive is written. It names the archive's generation and the files merged into
it, so a crash neither loses counts nor counts them twice.

Gauges of live processes (``live...``) end with their process. So do gauges with one value per
process (``all``), because their number would grow without bound.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .family import Family, Member
from .manifest import Manifest
from .observing import (
    WorkerProcesses,
    WorkerState,
    legacy_metrics,
    process_metrics,
    restart_metric,
)
from .values import ReservedDict

logger = logging.getLogger("pharox.gunicorn")

Numbers = dict[str, tuple[float, float]]
"""Values and their times, by the key that prometheus_client gives a series."""

Sample = tuple[str, tuple[tuple[str, str], ...]]

_FILE = re.compile(r"(?P<prefix>counter|histogram|summary|gauge_[a-z]+)_(?P<owner>[^_]+)\.db")
_ARCHIVE = re.compile(r"archive\.(\d+)")
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, struct.error)
_MANIFEST = "archive.json"
_TOUCH_S = 3600.0


class Aggregate(Collector):
    """Adds up the counts of a server's processes. A folder may have only one at a time.

    Parameters
    ----------
    family:
        The processes of the server.
    legacy_names:
        Whether to show metrics under the names of gunicorn-prometheus-exporter too.
    """

    def __init__(self, family: Family, *, legacy_names: bool = False) -> None:
        self._folder = family.folder
        self._processes = WorkerProcesses()
        self._legacy_names = legacy_names
        self._family = family
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._read: dict[str, Numbers] = {}
        self._touch_at = 0.0
        self._manifest = self._last_manifest()
        self._archive = {
            match["prefix"]: self._numbers(match.string)
            for match in self._files()
            if match["owner"] == f"archive.{self._manifest.generation}"
        }

    def _last_manifest(self) -> Manifest:
        """Return the archive's manifest; if damaged, one made from the names of its files."""
        try:
            stored = json.loads((self._folder / _MANIFEST).read_text())
            known = Manifest.__dataclass_fields__.keys()
            return Manifest(**{name: stored[name] for name in known if name in stored})
        except FileNotFoundError:
            return Manifest()
        except _UNREADABLE:
            self._warn(_MANIFEST, "%s is damaged; counts of ended workers may be wrong", _MANIFEST)
            found = (_ARCHIVE.fullmatch(match["owner"]) for match in self._files())
            return Manifest(max((int(one[1]) for one in found if one), default=0), corrupt=1)

    def describe(self) -> list[Metric]:
        """Describe no metrics in advance; ``collect`` finds them."""
        return []

    def collect(self) -> list[Metric]:
        """Return all metrics as they are now."""
        with self._lock:
            members = self._sweep()
            found: dict[str, list[tuple[str, Numbers]]] = {
                prefix: [("archive", numbers)] for prefix, numbers in self._archive.items()
            }
            for match in self._files():
                if not self._is_archived(match):
                    numbers = self._numbers(match.string)
                    found.setdefault(match["prefix"], []).append((match["owner"], numbers))
            return [*self._own_metrics(members), *_families(found)]

    def sweep(self) -> None:
        """Merge the files of ended processes into the archive."""
        with self._lock:
            self._sweep()
            if time.monotonic() >= self._touch_at:
                self._touch_at = time.monotonic() + _TOUCH_S
                self._family.touch()

    def _sweep(self) -> list[tuple[Member, bool]]:
        """Merge the files of ended processes; return the others, and whether each is alive."""
        # Files come first: whose file is seen has its lock by the time that is looked for.
        seen = [match for match in self._files() if not self._is_archived(match)]
        alive = {owner: self._family.is_alive(owner) for owner in {one["owner"] for one in seen}}
        files = [match for match in seen if not alive[match["owner"]]]
        merged = set(self._manifest.merged)
        members = [one for one in self._family.members() if one[0].files[-1] not in merged]
        dead = [one for one, is_alive in members if not is_alive]
        try:
            if dead or files:
                self._bury(dead, files)
                members = [(one, is_alive) for one, is_alive in members if is_alive]
            self._clear()
        except OSError as error:
            self._warn("archive", "counts of ended workers cannot be merged: %s", error.strerror)
        return members

    def _bury(self, members: list[Member], files: list[re.Match[str]]) -> None:
        """Write the next generation of the archive, with these members in it."""
        archive = dict(self._archive)
        for match in files:
            prefix, numbers = match["prefix"], self._numbers(match.string)
            if not prefix.startswith(("gauge_live", "gauge_all")):
                archive[prefix] = _added(prefix, (archive.get(prefix, {}), numbers))
        following = Manifest(**asdict(self._manifest))
        following.generation += 1
        workers = [member for member in members if member.is_worker]
        following.add(workers)
        names = [match.string for match in files]
        names += [file for member in members for file in member.files]
        following.merged = [*self._manifest.merged, *names]
        for prefix, numbers in archive.items():
            path = self._folder / f"{prefix}_archive.{following.generation}.db"
            path.unlink(missing_ok=True)
            written = ReservedDict(path)
            try:
                for key, (value, timestamp) in numbers.items():
                    written.write_value(key, value, timestamp)
            finally:
                written.close()
        self._commit(following)
        self._archive = archive

    def _commit(self, manifest: Manifest) -> None:
        new = self._folder / f"{_MANIFEST}.new"
        new.write_text(json.dumps(asdict(manifest)))
        new.replace(self._folder / _MANIFEST)
        self._manifest = manifest

    def _clear(self) -> None:
        """Remove files that were merged, and other generations of the archive."""
        for match in self._files():
            archive = _ARCHIVE.fullmatch(match["owner"])
            if archive and int(archive[1]) != self._manifest.generation:
                (self._folder / match.string).unlink(missing_ok=True)
        for name in self._manifest.merged:
            (self._folder / name).unlink(missing_ok=True)
            self._read.pop(name, None)
        if self._manifest.merged:
            self._commit(replace(self._manifest, merged=[]))

    def _files(self) -> Iterator[re.Match[str]]:
        """Yield the names of all files with values."""
        return filter(None, map(_FILE.fullmatch, os.listdir(self._folder)))

    def _is_archived(self, match: re.Match[str]) -> bool:
        return bool(_ARCHIVE.fullmatch(match["owner"])) or match.string in self._manifest.merged

    def _numbers(self, name: str) -> Numbers:
        """Return a file's values, or the last ones read before it was damaged."""
        known = self._read.get(name, {})
        try:
            numbers = _numbers(self._folder / name)
            if len(numbers) < len(known):  # A process only adds to it.
                raise ValueError("the file has lost entries")
            self._read[name] = numbers
        except FileNotFoundError:
            pass
        except _UNREADABLE:
            if name not in self._warned:
                self._warn(name, "%s is damaged; its last values are shown", name)
                self._manifest.corrupt += 1
        return self._read.get(name, {})

    def _warn(self, about: str, message: str, *arguments: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *arguments)

    def _own_metrics(self, members: list[tuple[Member, bool]]) -> Iterator[Metric]:
        workers = [(member, is_alive) for member, is_alive in members if member.is_worker]
        living = [member for member, is_alive in workers if is_alive]
        ended = [member for member, is_alive in workers if not is_alive]
        starts = self._manifest.starts + len(workers)
        if starts:  # Else none is counted, and 0 would be no figure of theirs.
            yield GaugeMetricFamily("gunicorn_workers", "Workers that are alive.", len(living))
            yield CounterMetricFamily(
                "gunicorn_worker_starts", "Workers that were started.", starts
            )
            yield restart_metric(self._manifest.exits_with(ended))
            states = self._processes.look(living)
            self._take_time(states)
            yield from process_metrics(states, self._manifest.times())
            if self._legacy_names:
                yield from legacy_metrics(states, self._manifest.seats_with(ended))
        yield CounterMetricFamily(
            "gunicorn_corrupt_files",
            "Files of metrics that could not be read.",
            self._manifest.corrupt,
        )

    def _take_time(self, states: Mapping[Member, WorkerState]) -> None:
        """Store the CPU time of workers before it is shown."""
        for member, state in states.items():
            self._manifest.running[member.identity] = (member.seat, state.cpu_s)
        with contextlib.suppress(OSError):  # There is no room: this process knows it still.
            self._commit(self._manifest)


def _numbers(path: Path) -> Numbers:
    """Return a file's values.

    Raises
    ------
    OSError, RuntimeError, ValueError, TypeError, struct.error
        If the file cannot be read, or is not valid.
    """
    if path.stat().st_size == 0:
        return {}  # It was made just now.
    numbers: Numbers = {}
    last = 0
    with path.open("rb") as file:
        (used,) = struct.unpack("i", file.read(4))
    if used < 0:
        raise ValueError("the file's length is negative")
    for key, value, timestamp, position in MmapedDict.read_all_values_from_file(str(path)):
        if position <= last:
            raise ValueError("the file's entries overlap")
        last = position
        before = numbers.get(key)
        numbers[key] = (value + before[0] if before else value, timestamp)
        if before is None:
            _series(key)
    return numbers


@lru_cache(maxsize=1 << 16)
def _series(key: str) -> tuple[str, str, dict[str, str], str]:
    """Return the metric, sample, labels and help text of a key.

    Raises
    ------
    ValueError, TypeError
        If the key is not valid.
    """
    metric, sample, labels, help_text = json.loads(key)
    if not isinstance(labels, dict):
        raise TypeError("labels must be a mapping")
    if not all(isinstance(text, str) for text in (metric, sample, help_text, *labels.values())):
        raise TypeError("names and labels must be text")
    float(labels.get("le", 0))
    return metric, sample, labels, help_text


def _added(prefix: str, several: Iterable[Numbers]) -> Numbers:
    """Merge the values of a series by the rule of its type."""
    total: Numbers = {}
    rule = prefix.removeprefix("gauge_").removeprefix("live")
    for numbers in several:
        for key, (value, timestamp) in numbers.items():
            before = total.get(key)
            if before is None:
                total[key] = (value, timestamp)
            elif rule == "mostrecent":
                total[key] = max((timestamp, value), before[::-1])[::-1]
            elif rule in ("min", "max"):
                total[key] = ((min if rule == "min" else max)(value, before[0]), timestamp)
            else:
                total[key] = (before[0] + value, timestamp)
    return total


def _families(found: Mapping[str, list[tuple[str, Numbers]]]) -> list[Metric]:
    """Return the metrics of several processes' values, by the prefix of their files."""
    families: dict[str, Metric] = {}
    for prefix, several in sorted(found.items()):
        kind = prefix.partition("_")[0]
        if prefix in ("gauge_all", "gauge_liveall"):
            parts = [({"pid": _pid(owner)}, numbers) for owner, numbers in several]
        else:
            parts = [({}, _added(prefix, (numbers for _, numbers in several)))]
        samples: dict[str, dict[Sample, float]] = defaultdict(dict)
        for own, numbers in parts:
            for key, (value, _) in numbers.items():
                name, sample, labels, help_text = _series(key)
                family = families.setdefault(name, Metric(name, help_text, kind))
                if family.type == kind:  # Else two versions of an application do not agree.
                    series = (sample, tuple(sorted({**labels, **own}.items())))
                    before = 0.0 if kind == "gauge" else samples[name].get(series, 0.0)
                    samples[name][series] = before + value  # Keys may differ in the help text.
        for name, values in samples.items():
            shown = _cumulated(name, values) if kind == "histogram" else values
            for (sample, place), value in shown.items():
                families[name].add_sample(sample, dict(place), value)
    return list(families.values())


def _pid(owner: str) -> str:
    return owner.partition("-")[0]


def _cumulated(name: str, values: Mapping[Sample, float]) -> dict[Sample, float]:
    """Return the samples of a histogram with cumulative buckets, and the count."""
    buckets: dict[tuple[tuple[str, str], ...], dict[float, float]] = defaultdict(dict)
    result: dict[Sample, float] = {}
    for (sample, labels), value in values.items():
        bound = dict(labels).get("le")
        if bound is None:
            result[sample, labels] = value
        else:
            rest = tuple(label for label in labels if label[0] != "le")
            buckets[rest][float(bound)] = value
    for labels, by_bound in buckets.items():
        total = 0.0
        for limit in sorted(by_bound):
            total += by_bound[limit]
            with_bound = tuple(sorted((*labels, ("le", floatToGoString(limit)))))
            result[f"{name}_bucket", with_bound] = total
        result[f"{name}_count", labels] = total
    return result
