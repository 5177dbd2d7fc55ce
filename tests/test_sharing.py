"""Engines at work at the same time divide the cores: counted at llama.cpp itself."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from toolkit.engines import llama
from toolkit.engines.base import Sampling
from toolkit.engines.sharing import Cores

ASK = [{"role": "user", "content": "A lamp on a hill."}]


class Decodings:
    """Stands before llama_decode: the threads of each decoding, and of all that run at the same moment."""

    def __init__(self, C, monkeypatch):
        self.C, self.real, self.lock = C, C.llama_decode, threading.Lock()
        self.now, self.most, self.seen = 0, 0, {}
        monkeypatch.setattr(C, "llama_decode", self)

    def __call__(self, ctx, batch):
        threads = self.C.llama_n_threads(ctx)
        assert self.C.llama_n_threads_batch(ctx) == threads
        with self.lock:
            self.now += threads
            self.most = max(self.most, self.now)
            self.seen.setdefault(ctx, []).append(threads)
        time.sleep(0.002)  # long enough for the others to come by
        try:
            return self.real(ctx, batch)
        finally:
            with self.lock:
                self.now -= threads


@pytest.fixture
def opened(tiny_gguf, monkeypatch):
    import llama_cpp

    monkeypatch.setattr(llama, "CORES", Cores(4))
    engines = [llama.LlamaEngine(tiny_gguf, n_ctx=1024) for _ in range(3)]
    yield engines, Decodings(llama_cpp, monkeypatch)
    for engine in engines:
        engine.close()


def test_who_works_alone_has_all_the_cores(opened):
    (engine, *_), decodings = opened
    engine.generate([ASK], 2, Sampling(max_tokens=6))
    engine.choose([ASK], ["1", "2"])
    assert set(decodings.seen[engine.ctx]) == {4}


@pytest.mark.parametrize(("engines", "share"), [(2, {2}), (3, {1, 2})])
def test_a_writer_and_judges_at_the_same_time_never_take_more_than_all_cores(opened, engines, share):
    (writer, *judges), decodings = opened
    with ThreadPoolExecutor(engines) as pool:
        jobs = [pool.submit(writer.generate, [ASK], 4, Sampling(max_tokens=60, temperature=2.0))]
        jobs += [
            pool.submit(lambda j=j: [j.choose([ASK], ["1", "2"]) for _ in range(20)]) for j in judges[: engines - 1]
        ]
        for job in jobs:
            job.result()
    assert decodings.most == 4
    assert any(set(decodings.seen[e.ctx]) & share for e in (writer, *judges[: engines - 1]))
    assert len(decodings.seen) == engines


def test_answers_do_not_depend_on_who_else_is_at_work(opened):
    (one, two, _), _ = opened
    alone = one.generate([ASK], 3, Sampling(max_tokens=20, seed=5))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda e: e.generate([ASK], 3, Sampling(max_tokens=20, seed=5)), (one, two)))
    assert both == [alone, alone]


def test_a_call_that_is_broken_off_no_longer_counts(opened):
    (one, two, _), decodings = opened
    stream = one.stream([ASK], 1, Sampling(max_tokens=50))
    next(stream)
    stream.close()
    two.generate([ASK], 1, Sampling(max_tokens=3))
    assert set(decodings.seen[two.ctx]) == {4}


def test_more_at_work_than_cores_take_turns():
    cores, now, most = Cores(2), [], []

    def work():
        with cores.at_work():
            for _ in range(20):
                with cores.some() as taken:
                    now.append(taken)
                    most.append(sum(now))
                    time.sleep(0.0005)
                    now.remove(taken)

    with ThreadPoolExecutor(5) as pool:
        for job in [pool.submit(work) for _ in range(5)]:
            job.result()
    assert max(most) == 2
    assert cores.free == 2
