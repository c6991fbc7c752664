"""Programs that call the network: values and gradients against the same loop in torch."""

import copy
import os
import pickle
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, Budgeted
from blackbox.adapters import Call, Hosted
from blackbox.adapters.hosted.serve import serve
from blackbox.errors import (
    BudgetError,
    ConfigurationError,
    DefinitionError,
    DtypeError,
    NoRowLeftError,
    RowFailedError,
    SessionError,
)
from tests.blackbox.adapters.hosted.programs import BEGIN, LINEAR, STEP, U, X, hosted, program

A = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
B = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
CASES = torch.arange(4)
LENGTHS = f"""
{BEGIN}
for _ in range(1 + case % 4):
    u = bb_host.exchange("closure", x)
    {STEP}
"""


def start(cases):
    return torch.stack([1.0 + cases, 2.0 - cases], dim=1).double()


def twin(network, cases, calls=4):
    """The states of the linear program, the first and after each answer: `(rows, calls + 1, 2)`."""
    states = [start(cases)]
    for _ in range(calls):
        states.append(states[-1] @ A.T + network(states[-1]) @ B.T)
    return torch.stack(states, dim=1)


def network(seed=0, size=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def gradient_of(network, loss):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def grad(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


class TestValues:
    def test_sees_and_gives(self, tmp_path):
        net, host = network(), hosted(tmp_path, LINEAR)
        with torch.no_grad():
            run = host.run(CASES, closure=net, dtype=torch.float64)
            known = twin(net, CASES)[:, :-1]
        assert torch.allclose(run.closure.x, known, atol=1e-14)
        assert torch.allclose(run.closure.u, net(known), atol=1e-14)
        assert run.closure.mask.all() and run.ended.all()
        assert (host.counts.started, host.counts.exchanges, host.counts.replays) == (4, 16, 0)

    @pytest.mark.slow
    @pytest.mark.parametrize("room", [1, 3000])
    def test_arrays_too_large_to_be_remembered_are_known_until_the_run_is_over(self, tmp_path, room):
        text = LINEAR + 'bb_host.output("last", x)'
        net, host = network(), hosted(tmp_path, text, outputs=[ArraySpec("last", (2,))])
        host.programs._room = room
        with torch.no_grad():
            for cases in (CASES, CASES + 2, CASES):
                run = host.run(cases, closure=net, dtype=torch.float64)
                assert torch.allclose(run.outputs["last"], twin(net, cases)[:, -1], atol=1e-14)
        assert len(host.programs._places) < 24 or room > 1  # of 30 that were reached
        assert not host.counts.replays

    def test_a_given_number_of_calls(self, tmp_path):
        net, host = network(), hosted(tmp_path, LINEAR, arguments=["1000000"])
        with torch.no_grad():
            run = host.run(CASES, calls=3, closure=net, dtype=torch.float64)
        assert torch.allclose(run.closure.x, twin(net, CASES, 3), atol=1e-14)  # one more is seen than given
        assert run.closure.u.shape == (4, 3, 2) and not run.ended.any()

    def test_a_single_call_needs_no_list(self, tmp_path):
        host = hosted(tmp_path, LINEAR, Call("closure", sees=X, gives=U))
        assert host.run(CASES, calls=2, closure=lambda x: x).closure.x.shape == (4, 3, 2)

    def test_results_of_runs_that_were_ended_before_they_sent_them(self, tmp_path):
        text = LINEAR + 'bb_host.output("last", x)'
        host = hosted(tmp_path, text, outputs=[ArraySpec("last", (2,))])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert host.run(CASES, calls=4, closure=lambda x: x).outputs["last"].any()
            run = host.run(CASES, calls=3, closure=lambda x: x)
            run = pickle.loads(pickle.dumps(run))  # as records are kept
        with pytest.warns(RuntimeWarning, match="send last, got 4 of 4 runs ended by calls=: .* are zeros"):
            assert not run.outputs["last"].any()

    def test_rows_of_other_lengths(self, tmp_path):
        text = f"""
        {BEGIN}
        for _ in range(1 + case):
            u = bb_host.exchange("closure", x)
            {STEP}
        bb_host.output("last", x)
        """
        net, host = network(), hosted(tmp_path, text, outputs=[ArraySpec("last", (2,))])
        with torch.no_grad():
            run = host.run(CASES, closure=net, dtype=torch.float64)
            known = twin(net, CASES)
        for row in range(4):
            assert run.closure.mask[row].tolist() == [True] * (1 + row) + [False] * (3 - row)
            assert torch.allclose(run.closure.x[row, : 1 + row], known[row, : 1 + row], atol=1e-14)
            assert torch.equal(run.closure.x[row, 1 + row :], torch.zeros(3 - row, 2, dtype=torch.float64))
            assert torch.allclose(run.outputs["last"][row], known[row, 1 + row], atol=1e-14)

    def test_several_calls_of_several_arrays(self, tmp_path):
        text = """
        a, b = 1.0 + case, 2.0
        for step in range(3):
            given = bb_host.call("momentum", a=doubles(a), n=array.array("i", [step]))
            a = a + given["p"][0] * 2 + given["q"][0]
            if step != 1:
                b = b + bb_host.exchange("heat", doubles(b, a))[0]
        """
        momentum = Call(
            "momentum",
            sees=[ArraySpec("a", (1,)), ArraySpec("n", (1,), "int32")],
            gives=[ArraySpec("p", (1,)), ArraySpec("q", (1,))],
        )
        heat = Call("heat", sees=ArraySpec("both", (2,)), gives=ArraySpec("h", (1,)))
        host = hosted(tmp_path, text, [momentum, heat])
        run = host.run(
            CASES,
            dtype=torch.float64,
            momentum=lambda a, n: (torch.sin(a), 0.1 * n.double()),
            heat=lambda both: 0.5 * both[:, :1],
        )
        for row in range(4):
            a, b, seen, heats = 1.0 + row, 2.0, [], []
            for step in range(3):
                seen.append((a, step))
                a = a + np.sin(a) * 2 + 0.1 * step
                if step != 1:
                    heats.append((b, a))
                    b = b + 0.5 * b
            assert np.allclose(run.momentum.a[row, :, 0], [s[0] for s in seen], atol=1e-14)
            assert run.momentum.n[row, :, 0].tolist() == [0, 1, 2]
            assert np.allclose(run.heat.both[row], heats, atol=1e-14)
            assert run.heat.mask[row].all()

    def test_rows_that_ask_for_different_calls_at_a_time(self, tmp_path):
        text = """
        x = 1.0 + case
        for step in range(4):
            if (step + case) % 2:
                x = x + bb_host.exchange("one", doubles(x))[0]
            else:
                x = x + bb_host.exchange("two", doubles(x))[0]
        """
        one, two = (Call(n, sees=ArraySpec("x", (1,)), gives=ArraySpec("d", (1,))) for n in ("one", "two"))
        run = hosted(tmp_path, text, [one, two]).run(
            torch.arange(3), dtype=torch.float64, one=lambda x: 0.5 * x, two=lambda x: -0.1 * x
        )
        for row in range(3):
            x, seen = 1.0 + row, {"one": [], "two": []}
            for step in range(4):
                name = "one" if (step + row) % 2 else "two"
                seen[name].append(x)
                x = x + (0.5 if name == "one" else -0.1) * x
            assert np.allclose(run.one.x[row, :, 0], seen["one"], atol=1e-14)
            assert np.allclose(run.two.x[row, :, 0], seen["two"], atol=1e-14)

    def test_large_arrays_go_through_shared_memory(self, tmp_path):
        text = """
        x = array.array("d", [case + k for k in range(20_000)])
        for _ in range(2):
            x = bb_host.exchange("closure", x)
        bb_host.output("sum", doubles(sum(x)))
        """
        call = Call("closure", sees=ArraySpec("x", (20_000,)), gives=ArraySpec("y", (20_000,)))
        host = hosted(tmp_path, text, [call], outputs=[ArraySpec("sum", (1,))])
        run = host.run([0, 5], dtype=torch.float64, closure=lambda x: 2 * x.flip(1))
        numbers = torch.arange(20_000, dtype=torch.float64)
        assert torch.equal(run.closure.x[1, 0], numbers + 5)
        assert torch.equal(run.closure.x[1, 1], 2 * (numbers + 5).flip(0))
        assert run.outputs["sum"][1] == 4 * (numbers + 5).sum()

    def test_outputs_from_files(self, tmp_path):
        text = """
        import pathlib
        u = bb_host.exchange("closure", doubles(1.0, 2.0))
        pathlib.Path("log.txt").write_text(f"drag = {u[0]!r}\\n")
        pathlib.Path("field.csv").write_text(f"{u[0]!r},{u[1]!r}\\n")
        """
        host = hosted(
            tmp_path,
            text,
            outputs=[ArraySpec("drag", ()), ArraySpec("field", (2,))],
            output_files={"field": "field.csv"},
            output_templates={"log.txt": "drag = {drag}"},
        )
        run = host.run([3], closure=lambda x: 3 * x, dtype=torch.float64)
        assert run.outputs["drag"].tolist() == [3.0] and run.outputs["field"].tolist() == [[3.0, 6.0]]

    def test_an_output_file_from_before_the_run_is_none(self, tmp_path):
        text = """
        import os, shutil
        bb_host.exchange("closure", doubles(1.0, 2.0))
        (shutil.copy2 if case else shutil.copy)(os.environ["OLD"], "log.txt")
        """
        old = tmp_path / "old.txt"
        old.write_text("drag = 3.0\n")
        os.utime(old, (1e9, 1e9))
        host = hosted(
            tmp_path,
            text,
            outputs=[ArraySpec("drag", ())],
            output_templates={"log.txt": "drag = {drag}"},
            environment={"OLD": str(old)},
            failures="keep",
        )
        run = host.run([0, 1], closure=lambda x: x)
        assert run.outputs["drag"][0] == 3 and run.outputs["drag"][1].isnan()
        assert "expected a file that this run wrote" in host.ledger.first_failure

    def test_what_a_case_needs_is_put_into_its_folder(self, tmp_path):
        text = """
        x = doubles(*map(float, open("start.txt").read().split()))
        bb_host.exchange("closure", x)
        """
        host = hosted(
            tmp_path,
            text,
            prepare=lambda case, folder: (folder / "start.txt").write_text(f"{case} {case + 1}"),
        )
        assert host.run([7], closure=lambda x: x).closure.x[0, 0].tolist() == [7.0, 8.0]

    def test_a_program_that_nobody_trains_runs_as_ever(self, tmp_path):
        path = program(tmp_path, LINEAR + "print(x[0])")
        out = subprocess.run(
            [sys.executable, "-I", "-S", path, "0"], capture_output=True, text=True, check=True
        )
        assert np.isclose(float(out.stdout), twin(lambda x: 0 * x, torch.zeros(1))[0, -1, 0])


class TestGradients:
    def test_tangents_end_at_autograd(self, tmp_path):
        net, host = network(), hosted(tmp_path, LINEAR)
        wanted = torch.tensor([0.5, -0.5], dtype=torch.float64)

        def objective(net, batch):
            run = host.run(batch[0], closure=net, dtype=torch.float64)
            return (run.closure.x - wanted).square().mean(dim=(1, 2))

        gradient = zo.TangentGradient(net, objective, boxes=[host], seed=0)
        for step in range(5):
            net.zero_grad()
            cases = (torch.arange(8) + 8 * step) % 5
            gradient.backward((cases,))
        exact = gradient_of(net, (twin(net, cases)[:, :-1] - wanted).square().mean())
        assert cosine(grad(net), exact) > 0.999
        assert abs(float(grad(net).norm() / exact.norm()) - 1) < 0.02

    def test_a_population_trains_by_the_runs_of_one_training(self, tmp_path):
        """Members other than the leader have the recorded runs, and no program starts for them."""
        net, host = network(), hosted(tmp_path, LINEAR)
        wanted, cases = torch.tensor([0.5, -0.5], dtype=torch.float64), torch.arange(3)

        def loss_of(x):
            return (x - wanted).square().mean(dim=(1, 2))

        gradient = zo.TangentGradient(
            net,
            lambda net, b: loss_of(host.run(b[0], closure=net, dtype=torch.float64).closure.x),
            boxes=[host],
            seed=0,
            limits=zo.tangents.Limits(replays=1, check_every=None),
        )
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        population = zo.Population(gradient, optimizer, steps=8, factors=(1.0, 16.0))
        assert population.without is not None and "goes on from another row's answer" in population.without
        before = loss_of(twin(net, cases)[:, :-1]).mean()
        for _ in range(8):
            population.step((cases,))
        assert population.leader == "rate 16"
        assert loss_of(twin(net, cases)[:, :-1]).mean() < 0.7 * before
        assert host.counts.started == 8 * 3 and not host.counts.replays
        assert host.ledger.rows_run == gradient.counts.rows == 8 * 3 * 4
        host.close()

    @pytest.mark.slow
    def test_a_result_of_the_end_has_a_gradient(self, tmp_path):
        text = LINEAR + 'bb_host.output("cost", doubles(x[0] + 2 * x[1]))'
        net, host = network(), hosted(tmp_path, text, outputs=[ArraySpec("cost", (1,))])
        gradient = zo.TangentGradient(
            net,
            lambda net, b: host.run(b[0], closure=net, dtype=torch.float64).outputs["cost"][:, 0],
            boxes=[host],
        )
        for step in range(12):
            net.zero_grad()
            cases = torch.arange(8) + 8 * (step % 2)
            gradient.backward((cases,))
        last = twin(net, cases)[:, -1]
        exact = gradient_of(net, (last[:, 0] + 2 * last[:, 1]).mean())
        assert cosine(grad(net), exact) > 0.99
        assert not host.counts.replays  # what is dithered is the same in the exchange and at the end

    @pytest.mark.slow
    @pytest.mark.parametrize("memory", [pytest.param(0, marks=pytest.mark.slow), None])
    def test_stages_of_a_step_need_what_was_seen_before(self, tmp_path, memory):
        """The end of a step depends on its beginning, which its second call does not show."""
        text = f"""
        {BEGIN}
        for _ in range(3):
            k = bb_host.exchange("closure", x)
            y = doubles(2 * k[0], 2 * k[1])
            l = bb_host.exchange("closure", y)
            x = doubles(*(0.9 * x[i] + 0.5 * (k[i] + l[i]) for i in range(2)))
        """
        call = Call("closure", sees=X, gives=U, stages=2, memory=memory)
        net, host = network(), hosted(tmp_path, text, [call])

        def exact(net, cases):
            x, total = start(cases), 0.0
            for _ in range(3):
                k = net(x)
                total = total + x.square().sum(1)
                y = 2 * k
                total = total + y.square().sum(1)
                x = 0.9 * x + 0.5 * (k + net(y))
            return total.mean()

        def objective(net, batch):
            return host.run(batch[0], closure=net, dtype=torch.float64).closure.x.square().sum(dim=(1, 2))

        with torch.no_grad():
            assert torch.allclose(objective(net, (CASES,)).mean(), exact(net, CASES))
        gradient = zo.TangentGradient(net, objective, boxes=[host], seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.TangentWarning)
            for step in range(8):
                net.zero_grad()
                cases = torch.arange(8) + 8 * (step % 3)
                gradient.backward((cases,))
        assert cosine(grad(net), gradient_of(net, exact(net, cases))) > 0.99

    @pytest.mark.slow
    def test_zeroth_order_over_weights(self, tmp_path):
        net, host = nn.Linear(2, 2).double(), hosted(tmp_path, LINEAR)

        def objective(net, batch):
            return host.run(batch[0], closure=net, dtype=torch.float64).closure.x.square().mean(dim=(1, 2))

        gradient = zo.LossGradient(net, objective, zo.CGE(mu=1e-5, central=True), evaluator="loop")
        gradient.backward((CASES[:1],))
        exact = gradient_of(net, twin(net, CASES[:1])[:, :-1].square().mean())
        assert torch.allclose(grad(net), exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))

    @pytest.mark.slow
    def test_a_stacked_evaluation_of_rows_of_other_lengths_goes_over_to_loop(self, tmp_path):
        net, host = nn.Linear(2, 2).double(), hosted(tmp_path, LENGTHS)

        def objective(net, batch):
            call = host.run(batch[0], closure=net, dtype=torch.float64).closure
            return (call.x.square().mean(dim=2) * call.mask).sum(dim=1)

        gradient = zo.LossGradient(net, objective, zo.CGE(mu=1e-5, central=True), evaluator="stacked")
        with pytest.warns(zo.errors.EvaluatorWarning, match="loop is used from here on"):
            gradient.backward((CASES,))
        mask = torch.arange(4) < 1 + CASES[:, None] % 4
        exact = gradient_of(net, (twin(net, CASES)[:, :-1].square().mean(dim=2) * mask).sum(dim=1).mean())
        assert torch.allclose(grad(net), exact, rtol=1e-6, atol=1e-8 * float(exact.abs().max()))

    def test_differences_at_the_inputs_are_refused(self, tmp_path):
        host = hosted(tmp_path, LINEAR)
        with pytest.raises(ConfigurationError, match="TangentGradient"):
            zo.differentiable(host.boxes[0], zo.RGE(q=4, mu=1e-3))

    @pytest.mark.slow
    def test_a_resumed_training_goes_on_to_the_bit(self, tmp_path):
        def objective(net, batch):
            return host.run(batch[0], closure=net, dtype=torch.float64).closure.x.square().mean(dim=(1, 2))

        def steps(net, gradient, numbers):
            for step in numbers:
                net.zero_grad()
                gradient.backward((torch.arange(4) + 4 * step,))
                with torch.no_grad():
                    for p in net.parameters():
                        if p.grad is not None:  # none while a response is waited for
                            p -= 0.05 * p.grad

        host, net = hosted(tmp_path, LINEAR), network()
        gradient = zo.TangentGradient(net, objective, boxes=[host], seed=0)
        steps(net, gradient, range(3))
        other = copy.deepcopy(net)
        kept = copy.deepcopy(gradient.state_dict())
        steps(net, gradient, range(3, 6))
        host.close()
        again = zo.TangentGradient(other, objective, boxes=[host], seed=0)
        again.load_state_dict(kept)
        steps(other, again, range(3, 6))
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def waited(condition, seconds):
    """Whether a condition holds within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


FAULTS = {
    "crash": ("import signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "status": (
        'print("out of licences", file=sys.stderr); sys.exit(3)',
        r"status 3 after \d call.*out of licences",
    ),
    "nan": ('bb_host.exchange("closure", doubles(float("nan"), 1.0))', r"NaN or infinity, after \d call"),
    "shape": ('bb_host.exchange("closure", doubles(1.0))', r"expected the shape \(2,\).*\(1,\)"),
    "name": ('bb_host.exchange("clossure", x)', "asks for 'clossure'"),
    "array": ('bb_host.call("closure", y=x)', "expected the arrays x"),
    "hang": ("time.sleep(600)", "sent nothing for 0.5 s"),
    "linger": ("bb_host.close(); time.sleep(600)", "still runs"),
    "garbage": ("bb_host._host._line.sendall(bytes(100))", "no message"),
    "fork": ('os.fork() or bb_host.exchange("closure", x)\ntime.sleep(.3); sys.exit(1)', "status 1"),
}


def _failing(where):
    """A program that ends with status 1 behind the steps of a condition; of "start" before its first call."""
    fails = 'print("no licence", file=sys.stderr); sys.exit(1)'
    if "start" in where:
        return LINEAR.replace(BEGIN, f"if {where.replace('start', 'True')}: {fails}\n{BEGIN}")
    return LINEAR.replace("for _ in", "for step in").replace(STEP, f"{STEP}\n    if {where}: {fails}")


class TestFailures:
    @pytest.mark.quick_cases(1)
    @pytest.mark.parametrize("fault", FAULTS)
    def test_each_is_a_failed_row_in_words(self, tmp_path, fault):
        code, words = FAULTS[fault]
        text = LINEAR.replace(STEP, f"{STEP}\n    if case == 1:\n        " + code.replace("\n", "\n        "))
        net, host = network(), hosted(tmp_path, text, timeout=0.5 if fault in ("hang", "linger") else 20)
        with pytest.raises(RowFailedError, match=f"(?s){words}"), torch.no_grad():
            host.run(torch.arange(3), closure=net, dtype=torch.float64)
        host.failures = "keep"
        began = time.monotonic()
        with torch.no_grad():
            run = host.run(torch.arange(3), closure=net, dtype=torch.float64)
        assert time.monotonic() - began < 60
        known = twin(net, torch.arange(3))[:, :-1]
        assert torch.allclose(run.closure.x[[0, 2]], known[[0, 2]], atol=1e-14)
        assert run.closure.x[1, 1:].isnan().all() and run.closure.mask.all()
        assert not any(place.program for place in host.programs._places.values())

    @pytest.mark.parametrize("cases", [[0, 2, 1], [3, 1]])
    def test_a_row_that_failed_at_its_last_call_has_no_loss(self, tmp_path, cases):
        """Nothing comes after it that could be NaN."""
        host = hosted(tmp_path, _failing("case != 1 and step == 3"), failures="keep")
        with torch.no_grad():
            run = host.run(cases, closure=network(), dtype=torch.float64)
        loss = run.closure.x.square().mean(dim=(1, 2))
        assert torch.equal(loss.isfinite(), torch.tensor(cases) == 1)
        assert torch.equal(run.ended, torch.tensor(cases) == 1)

    @pytest.mark.parametrize("calls", [None, 4])
    @pytest.mark.parametrize(
        ("where", "cases"),
        [("step == 0", [0]), ("step == 3", [0]), ("step == 1 + case", [0, 1, 2]), ("start", [0, 1])],
    )
    def test_a_run_of_which_no_row_is_left_has_no_arrays(self, tmp_path, calls, where, cases):
        """How long they would be is not known: what shows up to the last failure may pass for all of it."""
        text = _failing(where)
        host = hosted(tmp_path, text, outputs=[ArraySpec("last", (2,))], failures="keep")
        with torch.no_grad():
            run = host.run(cases, calls=calls, closure=network(), dtype=torch.float64)
        words = f"{len(cases)} of {len(cases)} rows? failed.*status 1 after \\d calls?.*no licence"
        for ask in (lambda: run.closure, lambda: run["closure"], lambda: list(run)):
            with pytest.raises(NoRowLeftError, match=words):
                ask()
        assert run.outputs["last"].isnan().all() and not run.ended.any()
        assert host.ledger.rows_failed == len(cases) and "no licence" in host.ledger.first_failure
        with pytest.raises(AttributeError, match="expected a call"):
            print(run.clossure)

    def test_a_call_to_which_only_rows_that_failed_would_have_come(self, tmp_path):
        text = """
        x = doubles(case, 1)
        bb_host.exchange("one", x)
        if case == 1: sys.exit(1)
        if case == 2: bb_host.exchange("two", x)
        """
        calls = [Call(name, sees=X, gives=U) for name in ("one", "two")]
        host = hosted(tmp_path, text, calls, failures="keep")
        run = host.run([0, 1], one=torch.ones_like, two=torch.ones_like)
        assert run.one.x.isnan().all(dim=2).tolist() == [[False], [True]]
        with pytest.raises(NoRowLeftError, match="the arrays of 'two' are, got none: 1 of 2 rows failed"):
            print(run.two)
        with pytest.raises(AttributeError, match="expected a call"):  # nobody asks, and nobody failed
            print(host.run([0], one=torch.ones_like, two=torch.ones_like).two)
        assert host.run([1, 2], one=torch.ones_like, two=torch.ones_like).two.x[0].isnan().all()

    @pytest.mark.quick_cases(3)
    @pytest.mark.parametrize("where", ["step == 2", "start"])
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_batch_of_which_no_row_is_left_is_a_failed_one(self, tmp_path, where, rows, first):
        """In words, whatever the objective does with arrays; and training goes on with the next batch."""
        host = hosted(tmp_path, _failing(f"case >= 5 and {where}"), failures="keep")
        truth = torch.ones(1, 4, 2, dtype=torch.float64)

        def objective(net, batch):
            run = host.run(batch[0], calls=4, closure=net, dtype=torch.float64)
            return (run.closure.x[:, :4] - truth).square().mean(dim=(1, 2))

        net = network()
        gradient = zo.TangentGradient(net, objective, boxes=[host], seed=0)
        fails, good = (torch.arange(5, 5 + rows),), (torch.arange(rows),)
        for batch in [fails, good, fails, good] if first else [good, good, fails, good]:
            if batch is good:
                assert gradient.backward(batch).isfinite()
                continue
            before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
            with pytest.raises(zo.FailedBatchError, match=r"status 1 after \d calls?.*no licence") as caught:
                gradient.backward(batch)
            assert caught.value.rows == rows
            for old, p in zip(before, net.parameters(), strict=True):
                assert (old is None and p.grad is None) or torch.equal(old, p.grad)
        assert gradient.counts.steps == (2 if first else 3)

    def test_a_batch_of_which_no_row_is_left_by_its_outputs(self, tmp_path):
        """No box was called before the end of a run, and it is no objective without a box."""
        text = _failing("start") + 'bb_host.output("last", x)'
        host = hosted(tmp_path, text, outputs=[ArraySpec("last", (2,))], failures="keep")
        gradient = zo.TangentGradient(
            network(),
            lambda net, b: host.run(b[0], closure=net, dtype=torch.float64).outputs["last"].sum(dim=1),
            boxes=[host],
            seed=0,
        )
        with pytest.raises(zo.FailedBatchError, match=r"status 1 after 0 calls.*no licence"):
            gradient.backward((CASES[:1],))

    def test_a_variant_of_which_no_row_is_left_is_a_query_that_failed(self, tmp_path):
        """A batch of one row: where weights are moved the program crashes earlier than the base ends."""
        host = hosted(tmp_path, _failing("step == 2 and u[0] > 1 + 1e-12"), failures="keep")
        net = nn.Linear(2, 2).double()
        nn.init.zeros_(net.weight)
        nn.init.ones_(net.bias)

        def objective(net, batch):
            run = host.run(batch[0], calls=4, closure=net, dtype=torch.float64)
            return (run.closure.x - torch.ones(1, 4, 2)).square().mean(dim=(1, 2))

        queries = zo.LossGradient(net, objective, zo.RGE(q=8, mu=1e-3), evaluator="loop", max_dropped=0.9)
        queries.backward((CASES[:1],))
        assert 0 < queries.counts.dropped < 8
        net.zero_grad()
        learned = zo.TangentGradient(net, objective, boxes=[host], limits=zo.tangents.Limits(excite=0.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert learned.backward((CASES[:1],)).isfinite()

    def test_training_goes_on_without_the_row(self, tmp_path):
        text = LINEAR.replace(STEP, f"{STEP}\n    if case == 1: sys.exit(1)")
        net, host = network(), hosted(tmp_path, text, failures="keep")

        def objective(net, batch):
            return host.run(batch[0], closure=net, dtype=torch.float64).closure.x.square().mean(dim=(1, 2))

        gradient = zo.TangentGradient(net, objective, boxes=[host], seed=0)
        cases = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(4):
                net.zero_grad()
                gradient.backward((cases,))
        others = cases[cases != 1]
        exact = gradient_of(net, twin(net, others)[:, :-1].square().mean())
        assert gradient.counts.lost == 4
        assert cosine(grad(net), exact) > 0.99

    def test_outputs_of_a_row_that_failed_are_no_numbers(self, tmp_path):
        text = (
            LINEAR.replace(STEP, f"{STEP}\n    if case == 1: sys.exit(1)")
            + 'bb_host.output("cost", doubles(1))'
        )
        host = hosted(tmp_path, text, outputs=[ArraySpec("cost", (1,))], failures="keep")
        with torch.no_grad():
            run = host.run([0, 1], closure=network(), dtype=torch.float64)
        assert run.outputs["cost"].isnan().flatten().tolist() == [False, True]

    def test_no_call_at_all(self, tmp_path):
        with pytest.raises(RowFailedError, match="ended without a call"):
            hosted(tmp_path, "print('hello')").run([0], closure=network())

    def test_an_output_that_is_missing(self, tmp_path):
        host = hosted(tmp_path, LINEAR, outputs=[ArraySpec("drag", ())])
        with pytest.raises(RowFailedError, match="'drag': the program ended without it"):
            host.run([0], closure=network().requires_grad_(False), dtype=torch.float64)

    def test_a_program_that_does_not_repeat_itself(self, tmp_path):
        text = LINEAR.replace(BEGIN, "x = doubles(time.time(), case)")
        host = hosted(tmp_path, text)
        with torch.no_grad():
            host.run([0], closure=network(0), dtype=torch.float64)
            with pytest.raises(SessionError, match="the same whenever it runs a case"):
                host.run([0], closure=network(1), dtype=torch.float64)

    @pytest.mark.slow
    def test_more_rows_than_programs(self, tmp_path):
        net, host = network(), hosted(tmp_path, LINEAR, live=2)
        with torch.no_grad():
            run = host.run(CASES, closure=net, dtype=torch.float64)
        assert torch.allclose(run.closure.x, twin(net, CASES)[:, :-1], atol=1e-14)
        assert host.counts.replays

    @pytest.mark.slow
    @pytest.mark.needs("linux")
    def test_a_trainer_that_is_killed_takes_its_programs_with_it(self, tmp_path):
        (tmp_path / "scratch").mkdir()
        path = program(
            tmp_path, f"{BEGIN}\nbb_host.exchange('closure', x)\nprint('there', flush=True)\ntime.sleep(600)"
        )
        trainer = tmp_path / "trainer.py"
        trainer.write_text(
            f"""
import sys, torch
from pathlib import Path
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
call = Call("closure", sees=ArraySpec("x", (2,)), gives=ArraySpec("u", (2,)))
command = [sys.executable, "-I", "-S", Path({str(path)!r}), "{{case}}"]
host = Hosted(command, calls=[call], scratch={str(tmp_path / "scratch")!r})
host.run([0, 1], closure=lambda x: x)
"""
        )
        root = str(Path(__file__).parents[4])
        trainer = subprocess.Popen([sys.executable, trainer], env={**os.environ, "PYTHONPATH": root})

        def there():
            return sum(b"there" in log.read_bytes() for log in (tmp_path / "scratch").glob("*/stdout.txt"))

        def programs():
            commands = [p / "cmdline" for p in Path("/proc").iterdir() if p.name.isdecimal()]
            return sum(str(path).encode() in _read(command) for command in commands)

        try:
            assert waited(lambda: there() == 2 and programs() == 2, 60)
        finally:
            trainer.kill()
            trainer.wait()
        assert waited(lambda: programs() == 0 and not [*(tmp_path / "scratch").iterdir()], 30)

    def test_folders_are_gone(self, tmp_path):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        host = hosted(tmp_path, LINEAR, scratch=scratch)
        host.run(CASES, calls=2, closure=network().requires_grad_(False), dtype=torch.float64)
        assert not list(scratch.iterdir())

    def test_runs_that_end_before_their_calls_are_said_once(self, tmp_path):
        host = hosted(tmp_path, LINEAR)
        net = network().requires_grad_(False)
        words = "calls=9, got 2 of 2 runs that ended by themselves, without an error, after 4 calls"
        with pytest.warns(RuntimeWarning, match=words):
            host.run([0, 1], calls=9, closure=net, dtype=torch.float64)
        host.run([0, 1], calls=9, closure=net, dtype=torch.float64)
        other = hosted(tmp_path, LINEAR)
        other.run([0, 1], calls=4, closure=net, dtype=torch.float64)  # as many as there are

    @pytest.mark.parametrize(
        ("cases", "calls", "words"),
        [
            ([0, 1, 2], 6, "2 of 3 runs that ended by themselves, without an error, after 3 to 4 calls"),
            ([2, 0], 6, "1 of 2 runs that ended by themselves, without an error, after 3 calls"),
            ([1, 2], 4, "1 of 2 runs that ended by themselves, without an error, after 4 calls"),
            ([0, 0], 3, None),  # as many as there are, and no run has more
            ([0, 1, 2], 2, None),
            ([0, 1, 2], None, None),  # each to its own end
        ],
    )
    def test_a_run_that_ends_before_others_is_said_once(self, cases, calls, words):
        def lasting(case, host):
            for _ in range((3, 4, 9)[case]):
                host.exchange("closure", np.ones(2))

        host = Hosted(lasting, calls=[Call("closure", sees=X, gives=U)])
        with pytest.warns(RuntimeWarning, match=words) if words else nullcontext():
            run = host.run(cases, calls=calls, closure=torch.zeros_like)
        last = run.closure.x[:, -1].bool().all(dim=1)
        assert torch.equal(last, run.closure.mask[:, -1]) and (words is None or not last.all())
        host.run(cases, calls=calls, closure=torch.zeros_like)

    def test_runs_go_through_wrappers(self, tmp_path):
        host, net = hosted(tmp_path, LINEAR), network().requires_grad_(False)
        wrapped = host.wrapped(lambda box: Budgeted(box, rows=12))
        assert [type(box) for box in wrapped.boxes] == [Budgeted] and type(host.boxes[0]) is not Budgeted
        run = wrapped.run(CASES, calls=3, closure=net, dtype=torch.float64)
        assert torch.allclose(run.closure.x, twin(net, CASES, 3), atol=1e-14)
        with pytest.raises(BudgetError):
            wrapped.run(CASES, calls=1, closure=net, dtype=torch.float64)


class TestRefused:
    def test_another_process(self, tmp_path):
        host = hosted(tmp_path, LINEAR)
        for one in (host, host.boxes[0]):
            assert copy.deepcopy(one) is one
            with pytest.raises(ConfigurationError, match="make a Hosted in each process"):
                pickle.dumps(one)

    def test_a_network_that_is_missing(self, tmp_path):
        with pytest.raises(ConfigurationError, match="closure=network"):
            hosted(tmp_path, LINEAR).run([0])

    def test_cases_that_are_no_whole_numbers(self, tmp_path):
        with pytest.raises(DtypeError, match="cases"):
            hosted(tmp_path, LINEAR).run([0.5], closure=network())

    def test_an_answer_of_another_shape(self, tmp_path):
        with pytest.raises(SessionError, match=r"u \(1, 2\).*\(1, 3\)"):
            hosted(tmp_path, LINEAR).run([0], closure=lambda x: torch.zeros(1, 3))

    @pytest.mark.parametrize(
        ("calls", "words"),
        [
            ([], "a list of Call"),
            ([Call("a", sees=X, gives=U), Call("a", sees=X, gives=U)], "stages=2"),
        ],
    )
    def test_calls(self, tmp_path, calls, words):
        with pytest.raises(ConfigurationError, match=words):
            Hosted(["true"], calls=calls)

    def test_answers_that_are_no_floats(self):
        with pytest.raises(DefinitionError, match="expected floats"):
            Call("a", sees=X, gives=ArraySpec("n", (1,), "int64"))

    @pytest.mark.parametrize("name", ["outputs", "two words", "a" * 50])
    def test_names(self, name):
        with pytest.raises(ConfigurationError, match="name"):
            Call(name, sees=X, gives=U)


def test_a_stage_has_what_is_of_use_of_earlier_ones_and_hands_it_on(tmp_path):
    call = Call("closure", sees=X, gives=U, stages=3, memory=0)
    first, second, third = hosted(tmp_path, LINEAR, [call]).exchanges
    assert [spec.name for spec in first.inputs if spec.modelled] == ["x", "u"]
    one_before = ["x", "x_1_before", "u_1_before", "u"]
    assert [spec.name for spec in second.inputs if spec.modelled] == one_before
    before = ["x_1_before", "u_1_before", "x_2_before", "u_2_before"]
    assert [spec.name for spec in third.inputs if spec.modelled] == ["x", *before, "u"]
    copies = {spec.name: spec.copy_of for spec in second.outputs}
    assert [copies[name] for name in ("x", *before)] == [None, "x", "u", "x_1_before", "u_1_before"]
    learned = [[spec.name for spec in box.outputs if spec.learned] for box in (first, second, third)]
    assert learned == [["x"], ["x"], ["x"]]


def test_serving_a_program_that_is_not_there_says_from_where_its_path_counts():
    with pytest.raises(ConfigurationError, match=r"got './ocean'. Give its path from the working directory"):
        serve(["./ocean"], [], {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sys.exit(3)", "serve: python.* ended with status 3 after 0 calls. Mend the program"),
        ("", "ended without a call: let it call bb_exchange .* host.exchange. Mend the program"),
        ("bb_host.exchange('closur', doubles(1, 2))", "expected the calls closure, .* asks for 'closur'"),
        ("bb_host.exchange('closure', doubles(1))", r"expected the shape \(2,\), .* sent \(1,\)"),
    ],
)
def test_serving_a_program_that_fails_is_a_sentence(tmp_path, text, words):
    command = [sys.executable, "-I", "-S", str(program(tmp_path, text)), "0"]
    with pytest.raises(RowFailedError, match=words) as raised:
        serve(command, [Call("closure", sees=X, gives=U)], {"closure": network()})
    assert "is gone" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_served_network_sees_the_precision_of_its_weights(tmp_path, capfd, dtype):
    net, text = network().to(dtype), LINEAR + "print(*x)"
    command = [sys.executable, "-I", "-S", str(program(tmp_path, text)), "2", "3"]
    assert serve(command, [Call("closure", sees=X, gives=U)], {"closure": net}) == 3
    shown = np.array(capfd.readouterr().out.split(), float)
    known = twin(network(), torch.tensor([2]), 3)[0, -1].detach()
    assert np.allclose(shown, known, rtol=1e-14 if dtype is torch.float64 else 1e-5)
