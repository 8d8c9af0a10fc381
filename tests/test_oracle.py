"""The oracle: passes, budgets, leaving, resting, and access."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from robust.attacks import PGD, Attack, make_attack
from robust.attacks.geometry import per_row
from robust.audit import audit
from robust.losses import ce, margin
from robust.oracle import Finished, Oracle
from robust.target import Target
from robust.threat import Threat

THREAT = Threat("linf", "0.2")
ENTERED: list[Target] = []


def entered(target: Target) -> Target:
    target.__enter__()
    ENTERED.append(target)
    return target


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Targets are left with the test: else what they replace in torch would stay so until they are collected."""
    yield
    while ENTERED:
        ENTERED.pop().__exit__(None, None, None)


@pytest.fixture
def oracle(net: nn.Module, digits: tuple[Tensor, Tensor]) -> Callable[..., Oracle]:
    x, y = digits
    target = Target(net, device="cpu")

    def make(**options: object) -> Oracle:
        return Oracle(entered(target), x, y, torch.arange(len(x)), THREAT, **options)  # type: ignore[arg-type]

    return make


def test_gradient_matches_autograd_and_counts_one_pass_each(
    oracle: Callable[..., Oracle], net: nn.Module
) -> None:
    view = oracle(micro_batch=10)
    out = view.gradient(view.x, ce)
    x = view.x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(net(x), view.y, reduction="sum")
    torch.testing.assert_close(out.gradient, torch.autograd.grad(loss, x)[0])
    assert view.ledger.forwards.tolist() == view.ledger.backwards.tolist() == [1] * 64
    assert all(p.grad is None for p in net.parameters())


def test_the_slope_of_weighted_logits_is_the_gradient_of_their_sum(
    oracle: Callable[..., Oracle], net: nn.Module
) -> None:
    view = oracle(micro_batch=10)
    weights = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    out = view.slope(view.x, weights)
    same = view.gradient(view.x, lambda logits, y, w: (logits * w).sum(1), weights)
    for mine, other in zip(out, same, strict=True):
        torch.testing.assert_close(mine, other)
    assert view.ledger.forwards.tolist() == view.ledger.backwards.tolist() == [2] * 64


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_are_brought_into_sets_of_any_radius(oracle: Callable[..., Oracle], norm: str) -> None:
    view, threat = oracle(), Threat(norm, "0.3")
    point = view.x + torch.randn(view.x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(view.brought_into(threat, point), threat.project(point, view.x))
    for _ in view.steps(1):
        view.give_up(torch.arange(64) % 2 == 0)
    for _ in view.steps(1):  # half of the rows have left
        torch.testing.assert_close(
            view.brought_into(threat, point[1::2]), threat.project(point[1::2], view.x)
        )


def test_broken_rows_leave_between_steps_and_states_shrink_with_them(oracle: Callable[..., Oracle]) -> None:
    view = oracle()
    state = view.state()
    state.index = torch.arange(64)
    sizes = []
    for step in view.steps(4):
        assert torch.equal(state.index, view.ids)
        sizes.append(len(view))
        x_adv = view.x.clone()
        third = state.index % 3 == step
        x_adv[third] = 1 - x_adv[third].round()  # outside the ball, may fool the net: must not count
        view.logits(x_adv)
        g = view.gradient(view.x, margin).gradient
        view.logits(view.project(view.x + 0.2 * g.sign()))
    assert sizes == sorted(sizes, reverse=True)
    assert len(view) == int((~view.ledger.broken).sum()) < 64
    assert (view.ledger.forwards[view.ledger.broken] < 12).all()
    assert (view.ledger.forwards[~view.ledger.broken] == 12).all()
    inside = THREAT.contains(view.ledger.x_adv, view.ledger.x_adv.round(decimals=6))
    assert inside.all()


def test_resting_rows_sit_out_one_loop_and_come_back_in_order(oracle: Callable[..., Oracle]) -> None:
    view = oracle()
    state = view.state()
    state.total = torch.zeros(64)
    for _ in view.steps(2):
        for _ in view.steps(3):
            state.total = state.total + 1
            view.rest(view.ids % 2 == 0)
        assert torch.equal(view.ids, torch.arange(64))
    assert torch.equal(state.total, torch.tensor([2.0, 6.0] * 32))


def test_the_budget_ends_the_run(oracle: Callable[..., Oracle]) -> None:
    view = oracle(budget=7)
    PGD(steps=40, step_size=0.001, random_start=False)(view)
    live = ~view.ledger.broken
    assert (view.ledger.forwards + view.ledger.backwards)[live].tolist() == [6] * int(live.sum())


def test_minimize_keeps_the_nearest_point_and_every_row(oracle: Callable[..., Oracle]) -> None:
    view = oracle(minimize=True)
    g = view.gradient(view.x, margin).gradient.sign()
    for _ in view.steps(1):
        view.logits(view.clip(view.x + 0.4 * g))
        far = view.ledger.distance.clone()
        view.logits(view.clip(view.x + 0.15 * g))
        view.logits(view.clip(view.x + 0.3 * g))
    assert len(view) == 64
    assert (view.ledger.distance <= far).all()
    assert (view.ledger.distance < far).any()
    assert torch.equal(view.ledger.broken, view.ledger.distance <= 0.2 + 1e-6)


def test_a_projected_point_counts_as_inside_only_while_it_is_what_was_projected(
    oracle: Callable[..., Oracle],
) -> None:
    view, twin = oracle(stays_inside=False), oracle(stays_inside=False)
    point = view.project(view.x + 0.5)
    view.logits(point)
    assert torch.equal(
        twin.logits(twin.project(twin.x + 0.5).clone()).argmax(1), view.logits(point).argmax(1)
    )
    assert torch.equal(view.gaps, twin.gaps)  # known or measured, the same gaps are noted
    for _ in twin.steps(1):
        before = twin.gaps
        far = twin.project(twin.x + 0.5)
        twin.logits(far.sub_(twin.x).mul_(5).add_(twin.x))  # the same tensor, and no longer inside
        assert torch.equal(twin.gaps, before)


def test_access_is_enforced(oracle: Callable[..., Oracle]) -> None:
    blind = oracle(access="decision")
    blind.decide(blind.x)
    with pytest.raises(AssertionError, match="declared decision"):
        blind.logits(blind.x)
    with pytest.raises(AssertionError, match="declared score"):
        oracle(access="score").gradient(blind.x, ce)


class Level(nn.Module):
    """Its logits are equal once the first value is above .5; below, the label leads."""

    def forward(self, x: Tensor) -> Tensor:
        lead = (0.5 - x.flatten(1)[:, :1]).clamp_min(0)
        return lead * torch.ones(3)


@pytest.mark.parametrize("minimize", [False, True])
def test_of_equal_logits_the_first_is_the_answer(minimize: bool) -> None:
    """As in argmax, by which models are judged: a label after it is broken, the first is not."""
    x, y = torch.full((2, 1, 1, 1), 0.9), torch.tensor([0, 2])
    with Target(Level(), device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(2), Threat("linf", "0.3"), minimize=minimize)
        oracle.logits(x)
    assert oracle.ledger.broken.tolist() == [False, True]


def test_a_row_with_nan_fails_and_leaves(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return torch.where(x[:, :, 0, 0] > 0.5, torch.nan, logits)

    x, _ = digits
    x[:, :, 0, 0] = 0.0
    y = net(x).argmax(1)
    with Target(Poisoned(), device="cpu") as target:
        view = Oracle(target, x, y, torch.arange(64), Threat("linf", "0.01"))
        for _ in view.steps(1):
            bad = x.clone()
            bad[5, :, 0, 0] = 1.0
            view.logits(bad)
    assert view.ledger.failed.nonzero().flatten().tolist() == [5]
    assert not view.ledger.broken[5]
    assert len(view) == 63


def test_without_rows_a_query_ends_the_attack(oracle: Callable[..., Oracle]) -> None:
    view = oracle()
    for _ in view.steps(1):
        view.rest(torch.ones(64, dtype=torch.bool))
    empty = Oracle(view._target, view.x[:0], view.y[:0], view.ids[:0], THREAT)
    with pytest.raises(Finished):
        empty.logits(empty.x)


def test_a_loop_on_nobody_ends_the_attack_unless_somebody_rests(oracle: Callable[..., Oracle]) -> None:
    view = oracle()
    state, ends = view.state(), 0
    state.total = torch.zeros(64)
    for _ in view.steps(1):
        view.rest(torch.ones(64, dtype=torch.bool))
        for _ in view.steps(2):
            raise AssertionError("all rest")
        state.total = state.total + 1
        ends += 1
        view.rest(view.ids > 0)
        for _ in view.steps(1):
            view.give_up(torch.ones(1, dtype=torch.bool))
    assert ends == 1
    assert torch.equal(state.total, torch.ones(63))
    view.give_up(torch.ones(63, dtype=torch.bool))
    with pytest.raises(Finished):
        next(view.steps(1))


def test_an_attack_is_a_value() -> None:
    assert PGD(steps=3) == PGD(steps=3)
    assert isinstance(PGD(), Attack)
    assert PGD(loss="margin").label == "pgd(loss=margin)"


def test_a_nearer_point_outside_the_box_displaces_none(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class EitherWay(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = x.flatten(1).mean(1).sub(0.02).abs()
            return torch.stack([0.03 - moved, moved - 0.03], 1)

    x, y = torch.full((3, 1, 2, 2), 0.02), torch.zeros(3, dtype=torch.int64)
    with Target(EitherWay(), device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(3), Threat("linf", "0.1"), stays_inside=False)
        oracle.logits(x - 0.05)
        oracle.logits(x + 0.08)
    assert oracle.ledger.broken.all()
    assert torch.equal(oracle.ledger.x_adv, x + 0.08)


def test_copies_leave_together_and_their_cost_is_the_samples(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    right = net(x).argmax(1) == y
    x, y = x[right][:12], y[right][:12]
    with Target(net, device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(12), Threat("linf", "0.15"))
        for _ in oracle.steps(1):
            oracle.logits(x)
        with oracle.multiplied(3) as many:
            assert len(many) == 36
            assert torch.equal(many.x[3:6], x[1:2].expand(3, *x.shape[1:]))
            assert many.copy_numbers.tolist() == [0, 1, 2] * 12
            assert len(many.ids.unique()) == 36
            s, asked = many.state(), 0
            s.x_adv = many.x
            for _ in many.steps(6):
                asked += len(many)
                gradient = many.gradient(s.x_adv, margin).gradient
                step = 0.03 * per_row(many.copy_numbers.float(), x)  # the first copy stands still
                s.x_adv = many.project(s.x_adv + step * gradient.sign())
        together = oracle.ledger
        assert 0 < int(together.broken.sum()) < 12
        assert int(together.backwards.sum()) == asked
        assert torch.equal(together.forwards, together.backwards + 1)
        left = len(x) - int(together.broken.sum())
        assert len(many) == 3 * left
        for _ in oracle.steps(1):
            assert len(oracle) == left
    found = together.broken
    assert audit(target, together.x_adv[found], x[found], y[found], Threat("linf", "0.15")).valid.all()


def test_copies_that_rest_leave_with_the_others(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    right = net(x).argmax(1) == y
    x, y = x[right][:6], y[right][:6]
    with Target(net, device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(6), Threat("linf", "1"))
        with oracle.multiplied(2) as many:
            for step in many.steps(3):
                if step == 0:
                    many.rest(many.copy_numbers == 1)
                else:
                    many.logits(oracle.x[-1:].expand_as(many.x))  # the last digit: right for its class only
            wrong = (y != y[-1]).sum()
            assert len(many) == 2 * (6 - int(wrong))
        assert int(oracle.ledger.broken.sum()) == int(wrong) > 0


def test_distances_are_those_of_the_point_as_it_is(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    for minimize in (False, True):
        with Target(net, device="cpu") as target:
            oracle = Oracle(
                target, x, y, torch.arange(6), Threat("l2", "1"), minimize=minimize, stays_inside=False
            )
            point = (x + 0.1).clamp(0, 1)
            oracle.gradient(point, ce)
            assert torch.equal(oracle.distance(point), oracle.threat.distance(point, x))
            assert torch.equal(oracle.change(point), point - x)
            point.mul_(0.5)
            assert torch.equal(oracle.distance(point), oracle.threat.distance(point, x))
            assert torch.equal(oracle.change(point), point - x)
            assert not oracle.distance(x).any()
            assert not oracle.change(x).any()


class Scripted(nn.Module):
    """Answers with logits in turn, a row for each value of x in tenths, all of them in the same memory."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers, self.memory = iter(answers), torch.empty_like(answers[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.memory[: len(x)].copy_(next(self.answers)[(10 * x[:, 0]).round().long()])


RIGHT, WRONG, NAN = (torch.tensor(row) for row in ([1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]))


def _scripted(*answers: list[Tensor], lags: bool, judge: Target | None = None) -> Oracle:
    """Of one query after the other, the rows' logits; all labels are 0."""
    rows = [torch.stack(answer) for answer in answers]
    x = (torch.arange(len(answers[0])) / 10)[:, None].repeat(1, 3)
    return Oracle(
        entered(Target(Scripted(rows), device="cpu")),
        x,
        torch.zeros(len(x), dtype=torch.int64),
        torch.arange(len(x)),
        THREAT,
        judge=judge,
        lags=lags,
    )


@pytest.mark.parametrize("lags", [False, True])
def test_a_row_that_failed_is_not_broken_by_the_query_that_it_stays_for(lags: bool) -> None:
    view = _scripted([NAN, RIGHT], [WRONG, RIGHT], [RIGHT, RIGHT], lags=lags)
    for _ in view.steps(3):
        view.logits(view.x)
    assert view.ledger.failed.tolist() == [True, False]
    assert view.ledger.broken.tolist() == [False, False]


@pytest.mark.parametrize("lags", [False, True])
def test_a_row_leaves_a_query_later_where_answers_are_looked_at_later(lags: bool) -> None:
    view = _scripted([RIGHT, WRONG], [RIGHT, WRONG], [RIGHT, RIGHT], [RIGHT, RIGHT], lags=lags)
    seen = []
    for _ in view.steps(4):
        seen.append(len(view))
        view.logits(view.x)
    assert seen == ([2, 2, 1, 1] if lags else [2, 1, 1, 1])
    assert view.ledger.broken.tolist() == [False, True]
    assert view.ledger.forwards.tolist() == [4, 2 if lags else 1]


def test_what_kept_an_answer_from_being_looked_at_is_told_and_everybody_is_back() -> None:
    """Also where the error comes up as a loop is left, of which Python tells nobody."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("the judge is ill")

    view = _scripted([RIGHT] * 3, [WRONG, RIGHT, RIGHT], lags=True, judge=Target(Broken(), device="cpu"))
    loop = view.steps(3)
    next(loop)
    view.logits(view.x)
    view.rest(torch.tensor([False, False, True]))
    next(loop)
    view.logits(view.x)
    with pytest.raises(ValueError, match="ill"):
        loop.close()
    assert len(view) == 3
    for _ in range(2):
        with pytest.raises(ValueError, match="ill"):
            _ = view.ledger


@pytest.mark.parametrize("rests", [False, True])
def test_ctrl_c_while_an_answer_is_looked_at_loses_nothing(rests: bool) -> None:
    class Interrupted(nn.Module):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += 1
            if self.asked == 1:
                raise KeyboardInterrupt
            return WRONG.repeat(len(x), 1)

    judge = Target(Interrupted(), device="cpu")
    view = _scripted([WRONG, RIGHT, RIGHT], [WRONG, RIGHT, RIGHT], lags=True, judge=judge)

    def interrupted() -> None:
        for _ in view.steps(2):
            view.logits(view.x)
            if rests:  # ranks close before the next query
                view.rest(torch.tensor([False, True, False]))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert view.ledger.broken.tolist() == [True, False, False]
    assert view.ledger.forwards.tolist()[1:] == [1, 1] if rests else [2, 2]
    assert len(view) == 2 if rests else 3


@pytest.mark.parametrize("name", ["fab", "pgd"])
def test_an_attack_runs_unobserved(net: nn.Module, digits: tuple[Tensor, Tensor], name: str) -> None:
    """As training has it: every row's last point."""
    x, y = digits[0][:6], digits[1][:6]
    with Target(net, device="cpu") as target:
        view = Oracle(target, x, y, torch.arange(6), THREAT, observe=False)
        last = make_attack(name, steps=3).run(view)
    assert last is not None
    assert last.shape == x.shape
    assert view.ledger.forwards.sum() > 0
