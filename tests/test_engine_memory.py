"""Memory that was freed: kept for the next pass, and handed back once it has gathered."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust import memory


def test_memory_is_kept_once_and_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc())
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory._set_malloc_thresholds.cache_clear()
    memory.keep_freed_memory()
    memory.keep_freed_memory()
    assert sorted(parameter for parameter, _ in asked) == [-3, -1]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    memory._set_malloc_thresholds.cache_clear()
    memory.keep_freed_memory()
    assert len(asked) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_has_gathered_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = memory._resident()
    assert held > 1 << 20
    assert memory.give_back(held + 1) <= held + 1
    trimmed = []
    library = type("Library", (), {"malloc_trim": lambda _, pad: trimmed.append(pad)})()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    memory.give_back(memory._resident())
    assert trimmed == []
    memory.give_back(0)
    assert trimmed == [0]
