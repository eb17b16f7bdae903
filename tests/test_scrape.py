"""A server's own metrics: read from pages of every kind, in spite of faults, and summed up over a window."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.endpoint import Endpoint
from replay.exposition import KINDS, NAMES, NotMetrics, parse_series, read_exposition
from replay.scrape import FAILED, READ_US, Scraper, ServerSample, ServerWindow, server_metrics
from replay.window import Window

SECOND = 1_000_000_000

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="a, \\"b\\" } c"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2e+06
vllm:prefix_cache_queries_created{engine="0"} 1.7e+09
vllm:request_queue_time_seconds_bucket{le="0.3"} 7
vllm:request_queue_time_seconds_sum{} 4.5 1700000000
vllm:request_queue_time_seconds_count 9 # {trace_id="x"} 1.0
process_open_fds 17
"""


def test_a_page_gives_the_wanted_series_and_nothing_else() -> None:
    assert read_exposition(VLLM) == {
        'vllm:num_requests_running{engine="0",model_name="m"}': 3.0,
        'vllm:num_requests_waiting{engine="0",model_name="m"}': 2.0,
        'vllm:kv_cache_usage_perc{engine="0",model_name="a, \\"b\\" } c"}': 0.25,
        'vllm:prompt_tokens_total{engine="0",model_name="m"}': 1.2e6,
        "vllm:request_queue_time_seconds_sum{}": 4.5,
        "vllm:request_queue_time_seconds_count": 9.0,
    }


def test_labels_are_read_with_their_escapes_and_ranks_are_one_part() -> None:
    series = parse_series('a:b{x="1, \\"2\\" }\\n",tp_rank="3",model="m",}')
    assert series is not None
    assert series.labels == (("x", '1, "2" }\n'), ("tp_rank", "3"), ("model", "m"))
    assert series.part == (("x", '1, "2" }\n'), ("model", "m"))
    assert parse_series("a b") is None
    assert parse_series("a{b=c}") is None


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), max_size=30),
        max_size=5,
    ),
    st.floats(allow_nan=True, allow_infinity=True),
)
def test_whatever_labels_say_the_value_is_found(labels: dict[str, str], value: float) -> None:
    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    written = ",".join(f'{name}="{escape(text)}"' for name, text in labels.items())
    line = f"vllm:num_requests_running{{{written}}} {value!r}\n".encode()
    found = read_exposition(line)
    if not math.isfinite(value) or len(line) > 400:
        return
    ((series, read),) = found.items()
    assert read == value
    parsed = parse_series(series)
    assert parsed is not None
    assert dict(parsed.labels) == labels


@given(st.binary(max_size=200), st.sampled_from([b"", b"[", b"{", b"vllm:num_requests_running", b"# TYPE "]))
def test_no_bytes_break_the_reader(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(NotMetrics):
        assert all(math.isfinite(value) for value in read_exposition(start + noise).values())


@pytest.mark.parametrize("body", [b"", b"<html>404</html>", b"[1", b"[" * 5000, b'{"error": 1}', b'["x"]'])
def test_what_is_no_metrics_page_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(NotMetrics):
        read_exposition(body)


def test_tensorrt_llm_statistics_are_read_from_json() -> None:
    entry = {
        "iter": 7,
        "numActiveRequests": 5,
        "numQueuedRequests": 3,
        "kvCacheStats": {"usedNumBlocks": 600, "maxNumBlocks": 1000, "reusedBlocks": 30, "missedBlocks": 10},
        "specDecodingStats": {"acceptanceLength": 3.75},
    }
    assert read_exposition(json.dumps([{"iter": 6}, entry]).encode()) == {
        "trtllm:numActiveRequests": 5.0,
        "trtllm:numQueuedRequests": 3.0,
        "trtllm:kvCacheUse": 0.6,
        "trtllm:kvCacheReusedBlocks": 30.0,
        "trtllm:kvCacheAskedBlocks": 40.0,
        "trtllm:acceptanceLength": 3.75,
    }
    assert read_exposition(b"[]") == {}


def test_the_table_pairs_hits_with_queries_of_the_same_engine() -> None:
    assert set(NAMES) == set(KINDS)
    for queries, hits in zip(NAMES["prefix_queries"], NAMES["prefix_hits"], strict=True):
        assert queries.replace(":", "_").split("_")[0] == hits.replace(":", "_").split("_")[0]


# -- windows


def samples(*readings: tuple[float, dict[str, float]], server: str = "http://a") -> list[ServerSample]:
    found = []
    for at_s, values in readings:
        t_ns = round(at_s * SECOND)
        marked = {READ_US: 900.0, **values}
        found += [ServerSample(t_ns=t_ns, server=server, metric=name, value=value) for name, value in marked.items()]
    return found


def over(start_s: float, end_s: float, found: list[ServerSample]) -> ServerWindow:
    metrics = server_metrics(found, Window(start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND)))
    assert metrics is not None
    return metrics.total


def test_gauges_are_means_and_peaks_of_the_readings_inside() -> None:
    name = "vllm:num_requests_running"
    seen = over(1, 4, samples((0, {name: 50}), (1, {name: 2}), (2, {name: 6}), (3.9, {name: 4}), (4, {name: 90})))
    assert seen.running is not None
    assert (seen.running.mean, seen.running.peak, seen.readings) == (4.0, 6.0, 3)
    assert seen.longest_gap_s == 1.9
    assert seen.waiting is None
    assert seen.preemptions is None


def test_loads_add_up_over_engines_and_the_fullest_cache_counts_while_ranks_count_once() -> None:
    values = {
        'sglang:num_running_reqs{dp_rank="0",tp_rank="0"}': 3.0,
        'sglang:num_running_reqs{dp_rank="0",tp_rank="1"}': 3.0,
        'sglang:num_running_reqs{dp_rank="1",tp_rank="0"}': 4.0,
        'sglang:token_usage{dp_rank="0"}': 0.2,
        'sglang:token_usage{dp_rank="1"}': 0.9,
        "sglang:spec_accept_length": 0.0,
    }
    seen = over(0, 2, samples((0, values), (1, values)))
    assert seen.running is not None
    assert seen.kv_use is not None
    assert (seen.running.mean, seen.kv_use.peak, seen.acceptance_length) == (7.0, 0.9, None)


def test_a_counter_grows_between_the_edges_of_the_window() -> None:
    name = "vllm:generation_tokens_total"
    found = samples((0, {name: 1000}), (1, {name: 1100}), (2, {name: 1300}), (3, {name: 1400}))
    assert over(0.5, 2.5, found).generation_tokens == 300.0
    assert over(-5, 50, found).generation_tokens == 400.0
    assert over(10, 20, found).generation_tokens is None
    assert over(0, 1, found[:2]).generation_tokens is None


def test_a_server_that_starts_anew_counts_from_nothing() -> None:
    name = "vllm:generation_tokens_total"
    seen = over(0, 4, samples((0, {name: 1000}), (1, {name: 1100}), (2, {name: 30}), (3, {name: 50})))
    assert (seen.generation_tokens, seen.resets) == (150.0, 1)


def test_a_counter_that_appears_late_began_at_zero() -> None:
    base = {"vllm:prompt_tokens_total": 0.0}
    late = {**base, "vllm:num_preemptions_total": 4.0}
    assert over(0, 3, samples((0, base), (1, late), (2, late))).preemptions == 4.0
    assert over(0, 3, samples((0, late), (1, late), (2, late))).preemptions == 0.0


def test_shares_and_means_come_from_growth_not_from_totals() -> None:
    first = {
        "vllm:prefix_cache_queries_total": 1e6, "vllm:prefix_cache_hits_total": 1e6,
        "vllm:spec_decode_num_drafts_total": 100.0, "vllm:spec_decode_num_accepted_tokens_total": 300.0,
        "vllm:request_queue_time_seconds_sum": 500.0, "vllm:request_queue_time_seconds_count": 5.0,
    }  # fmt: skip
    grown = dict(zip(first, (1e6 + 400, 1e6 + 100, 110.0, 325.0, 506.0, 9.0), strict=True))
    seen = over(0, 1, samples((0, first), (1, grown)))
    assert (seen.prefix_hit_share, seen.acceptance_length, seen.queue_mean_s) == (0.25, 3.5, 1.5)


def test_hits_of_one_engine_are_never_divided_by_queries_of_another() -> None:
    first = {"dynamo_frontend_cached_tokens_sum": 0.0, "vllm:prefix_cache_queries_total": 0.0}
    seen = over(0, 1, samples((0, first), (1, dict.fromkeys(first, 50.0))))
    assert seen.prefix_hit_share is None


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=20), st.integers(1, 19))
def test_growth_is_never_negative_and_adds_up_over_parts_of_a_window(steps: list[tuple[int, bool]], cut: int) -> None:
    value, found = 0, []
    for place, (step, restart) in enumerate(steps):
        value = step if restart else value + step
        found += samples((place, {"vllm:generation_tokens_total": float(value)}))
    end = len(steps) - 1
    whole = over(0, end, found).generation_tokens
    middle = min(cut, end) - 0.5
    left, right = over(0, middle, found).generation_tokens, over(middle, end, found).generation_tokens
    assert whole is not None
    assert left is not None
    assert right is not None
    assert min(left, right) >= 0
    assert left + right == pytest.approx(whole)


def test_several_servers_are_summed_only_where_all_of_them_say() -> None:
    one = samples((0, {"vllm:num_requests_waiting": 2.0, "vllm:kv_cache_usage_perc": 0.3}), (1, {}), server="http://a")
    two = samples((0.5, {"vllm:num_requests_waiting": 5.0}), (1.5, {}), server="http://b")
    seen = over(0, 2, one + two)
    assert seen.server == "all"
    assert seen.waiting is not None
    assert (seen.waiting.mean, seen.waiting.peak) == (7.0, 5.0)
    assert seen.kv_use is None


def test_failed_readings_are_counted_with_their_reasons() -> None:
    failed = [
        ServerSample(t_ns=SECOND, server="http://a", metric=f'{FAILED}{{reason="{reason}"}}', value=1.0)
        for reason in ("time-out", "HTTP 500", "time-out")
    ]
    seen = over(0, 2, failed)
    assert (seen.readings, seen.failed_readings, seen.failures) == (0, 3, ("time-out", "HTTP 500"))
    assert seen.longest_gap_s is None
    assert server_metrics([], Window(start_ns=0, end_ns=1)) is None


# -- reading


type Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def pages(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def scrape(url: str, seconds: float = 0.25) -> tuple[ServerSample, ...]:
    with Scraper(Endpoint(url, "m"), period_s=0.05) as scraper:
        time.sleep(seconds)
    return scraper.samples


def test_a_server_is_read_on_a_grid_from_before_the_start_to_after_the_end() -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers.get("authorization")))
        send(handler, b"# TYPE x gauge\nvllm:num_requests_running 3\n")

    with pages(answer) as url:
        before = time.monotonic_ns()
        with Scraper(Endpoint(url, "m"), period_s=0.05) as scraper:
            started = time.monotonic_ns()
            assert [sample.value for sample in scraper.samples if sample.metric != READ_US] == [3.0]
            assert before < scraper.samples[0].t_ns < started
            deadline = time.monotonic() + 20
            while len(asked) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            ending = time.monotonic_ns()
        scraper.stop()
        assert scraper.samples[-1].t_ns > ending
    assert len(asked) >= 4
    assert set(asked) == {("/metrics", None)}
    assert {sample.server for sample in scraper.samples} == {url}


def test_text_is_preferred_to_json_and_found_at_its_second_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers.get("authorization")))
        text = handler.path.startswith("/prometheus")
        send(handler, b"trtllm_num_requests_running 4\n" if text else b'[{"iter": 1, "numActiveRequests": 9}]')

    monkeypatch.setenv("THE_KEY", "sk-1")
    with pages(answer) as url:
        with Scraper(Endpoint(url, "m", "THE_KEY"), period_s=0.05) as scraper:
            pass
        with Scraper(Endpoint("http://127.0.0.1:9", "m", "THE_KEY"), metrics_urls=[url + "/metrics"]) as other:
            pass
    assert {sample.metric for sample in scraper.samples} == {READ_US, "trtllm_num_requests_running"}
    assert asked[:2] == [("/metrics", "Bearer sk-1"), ("/prometheus/metrics", "Bearer sk-1")]
    assert {key for path, key in asked[2:-3]} == {"Bearer sk-1"}
    assert asked[-1] == ("/prometheus/metrics", None)  # another host gets no key
    assert {sample.server for sample in other.samples} == {url}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: send(handler, b"nothing here", 404), "HTTP 404"),
        (lambda handler: send(handler, b"broken", 500), "HTTP 500"),
        (lambda handler: send(handler, b"<html>"), "no metrics"),
        (lambda handler: send(handler, b"x" * 5_000), "too long"),
        (lambda handler: handler.wfile.write(b"not HTTP at all\r\n\r\n"), "broken HTTP"),
        (lambda _: time.sleep(0.3), "time-out"),
    ],
    ids=["404", "500", "no metrics", "too long", "no HTTP", "hangs"],
)
def test_a_failed_reading_is_a_fact_with_a_reason(answer: Answer, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.scrape.MOST_BYTES", 2_000)
    if reason == "time-out":
        monkeypatch.setattr("replay.scrape.TIMEOUT_S", 0.1)
    with pages(answer) as url:
        found = scrape(url)
    assert {sample.metric for sample in found} == {f'{FAILED}{{reason="{reason}"}}'}
    assert 2 <= len(found) <= (3 if reason in ("HTTP 404", "no metrics") else 100)  # it stops asking who has none


def test_nobody_there_is_a_fact_too() -> None:
    found = scrape("http://127.0.0.1:9", 0.1)
    assert {sample.metric for sample in found} == {f'{FAILED}{{reason="no connection"}}'}


def test_a_trickling_page_is_left_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.scrape.TIMEOUT_S", 0.1)
    written: list[int] = []

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        written.append(0)
        for _ in range(1000):
            handler.wfile.write(b"x")
            written[-1] += 1
            time.sleep(0.02)

    with pages(trickle) as url:
        found = scrape(url, 0.1)
    assert {sample.metric for sample in found} == {f'{FAILED}{{reason="time-out"}}'}
    assert 0 < max(written) < 1000
