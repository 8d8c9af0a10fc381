"""Mistakes in options, configuration and tests: each is told readably, none as an internal error."""

from __future__ import annotations

import pytest
import torch
from sessions import PASSES, Session

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--robust-preset", "smok"], "*unknown preset 'smok'; did you mean 'smoke'*"),
        (["--robust-samples", "0"], "*--robust-samples: expected a positive integer, got '0'*"),
        (["--robust-samples", "²"], "*--robust-samples: expected a positive integer, got '²'*"),
        (["--robust-seed", "x"], "*--robust-seed: expected an integer >= 0, got 'x'*"),
        (["--robust-json", "."], "*--robust-json: expected a file that can be written*"),
    ],
)
def test_bad_options_stop_the_session(session: Session, arguments: list[str], text: str) -> None:
    session.write(PASSES)
    result = session.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])
    assert "Traceback" not in result.stderr.str()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("robust_preset = smok", "*robust_preset in *: unknown preset 'smok'*"),
        ("robust_samples = many", "*robust_samples in *: expected a positive integer, got 'many'*"),
    ],
)
def test_a_bad_configuration_stops_the_session(session: Session, line: str, text: str) -> None:
    session.pytester.makeini(f"[pytest]\n{line}\n")
    session.write(PASSES)
    result = session.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])


def test_a_bad_override_of_the_configuration_is_said_to_be_one(session: Session) -> None:
    session.write(PASSES)
    result = session.run("-o", "robust_samples=many")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*robust_samples in -o: expected a positive integer, got 'many'*"])


CHECK = "def test_it(robust):\n    robust.check(Threshold(), samples(100, 0.5), {})\n"


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("@pytest.mark.robust(threat=EPS, at_least=45)\ndef test_it(robust): pass\n", "at_least: expected a fraction"),
        ("@pytest.mark.robust(threat=EPS, atleast=0.4)\ndef test_it(robust): pass\n", "marker robust: no option 'atleast'"),
        ("@pytest.mark.robust(EPS)\ndef test_it(robust): pass\n", "expected named options only, got 'linf:0.1'"),
        ("@pytest.mark.robust(threat=EPS, at_least=0.4)\ndef test_it(): pass\n", "the test does not use the fixture 'robust'"),
        ("@pytest.mark.robust(threat=EPS, at_least=0.4)\ndef test_it(robust): pass\n", "the test never called robust.check"),
        ("@pytest.mark.robust(threat=EPS)\ndef test_it(robust): pass\n", "or robust.evaluate(model, data)"),
        (CHECK.format("at_least=0.4"), "threat: expected one such as 'linf:8/255', got none"),
        (CHECK.format("threat=EPS"), "at_least: expected a fraction such as 0.45, got none"),
        (CHECK.format("threat='lp:1', at_least=0.4"), "expected one of linf, l2, l1, l0"),
        (CHECK.format("threat=EPS, at_least=1.5"), "at_least: expected a fraction within (0, 1) such as 0.45, got 1.5"),
        (CHECK.format("threat=EPS, at_least=0.4, sweet='quick'"), "no option 'sweet'"),
        (CHECK.format("threat=EPS, at_least=0.4, suite='quik'"), "did you mean 'quick'"),
        (CHECK.format("threat=EPS, at_least=0.4, max_samples=500"), "500 asked for, but the data has 100"),
        (CHECK.replace("Threshold()", "Threshold().to('meta')").format("threat=EPS, at_least=0.4"), "meta device"),
        (CHECK.replace("Threshold()", "print").format("threat=EPS, at_least=0.4"), "expected a torch.nn.Module"),
        (CHECK.replace("check", "evaluate").format("threat=EPS, at_least=0.4"), "evaluate: no option 'at_least'"),
    ],
)  # fmt: skip
def test_bad_input_fails_readably(session: Session, test: str, text: str) -> None:
    session.write(test)
    result = session.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert text in result.stdout.str()
    for sign in ("INTERNALERROR", "Traceback", "robust/gate"):
        assert sign not in result.stdout.str()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(session: Session) -> None:
    session.write(PASSES)
    session.run("--robust-device", "cuda").stdout.fnmatch_lines(["*this torch sees no CUDA device*"])
