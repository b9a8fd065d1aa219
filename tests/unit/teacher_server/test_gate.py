"""How far two versions' answers are from each other, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from teacher_server.errors import BadQuery
from teacher_server.promotion import NO_ITEMS, GateFloors, GateReport
from teacher_server.serve.gate import ForwardTime, compare_logits, merge_reports

NO_TIME = ForwardTime()


def softmax(row: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in row) for x in row]


def test_agreement_and_divergence_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(0, 3, (2, 40, 5)).astype(np.float32)
    agree, divergence = 0, 0.0
    for a, b in zip(old.tolist(), new.tolist(), strict=True):
        agree += a.index(max(a)) == b.index(max(b))
        p, q = softmax(a), softmax(b)
        divergence += sum(p[k] * math.log(p[k] / q[k]) for k in range(5))
    report = compare_logits(old, new, NO_TIME, NO_TIME)
    assert report.items == 40
    assert report.agreement == agree / 40
    assert report.kl == pytest.approx(divergence / 40, rel=1e-6)


def test_equal_answers_agree_and_do_not_diverge() -> None:
    logits = np.float32([[1e4, -1e4, 0], [0, 0, 1]])
    report = compare_logits(logits, logits, NO_TIME, NO_TIME)
    assert (report.agreement, report.kl) == (1.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_pass_no_floor(bad: float) -> None:
    logits = np.float32([[1, 2], [3, 4]])
    report = compare_logits(logits, np.float32([[1, 2], [bad, 4]]), NO_TIME, NO_TIME)
    assert not math.isfinite(report.kl)
    assert report.refusals(GateFloors(max_kl=1e9))


def test_the_time_of_a_clip_is_that_of_the_passes_in_between() -> None:
    before, after = ForwardTime(1.0, 100), ForwardTime(1.0, 100) + ForwardTime(0.5, 20)
    report = compare_logits(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), after - before, NO_TIME)
    assert (report.old_ms, report.new_ms) == (25.0, 0.0)


def test_reports_of_replicas_count_by_their_items() -> None:
    merged = merge_reports([GateReport(10, 1.0, 0.0, 2.0, 4.0), NO_ITEMS, GateReport(30, 0.6, 0.4, 4.0, 2.0)])
    assert merged.items == 40
    assert [merged.agreement, merged.kl] == pytest.approx([0.7, 0.3])
    assert [merged.old_ms, merged.new_ms] == pytest.approx([3.5, 2.5])


def test_nothing_compared_is_no_report_to_pass_a_floor_with() -> None:
    assert merge_reports([]) == merge_reports([NO_ITEMS]) == NO_ITEMS
    assert NO_ITEMS.refusals(GateFloors()) == ()
    assert NO_ITEMS.refusals(GateFloors(min_agreement=0.0)) != ()


@pytest.mark.parametrize(
    "floors",
    [{"min_agreement": 5.0}, {"min_agreement": math.nan}, {"max_kl": -0.1}, {"max_latency_ratio": math.nan}],
)
def test_a_floor_that_cannot_be_meant_is_refused(floors: dict[str, float]) -> None:
    with pytest.raises(BadQuery, match=r"the least agreement is a share from 0 to 1|must be a number >= 0"):
        GateFloors(**floors)
