"""The command line: one sentence and status 2 for what cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfa_kernels import backends, cli, testing
from dfa_kernels.training import InputError, extras
from dfa_kernels.training.options import Options, parse_hidden, parse_lr


def refused(capsys, *arguments: str) -> str:
    """The sentence with which the command line refuses."""
    try:
        status = cli.main(arguments)
    except SystemExit as left:
        status = left.code
    printed = capsys.readouterr()
    assert status == 2 and not printed.out
    assert printed.err.count("\n") == 1 and printed.err.startswith("dfa-kernels")
    return printed.err


def test_info_names_every_backend(capsys) -> None:
    assert cli.main(["info", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and "device cpu" in printed
    assert "backend reference: pure PyTorch" in printed and "chosen: " in printed


@pytest.fixture
def on_a_cpu(monkeypatch) -> None:
    """Nobody named a backend, and Triton's interpreter is off."""
    monkeypatch.delenv("DFA_KERNELS_BACKEND", raising=False)
    for name in ("triton", "cuda"):
        backend = backends.get(name)
        monkeypatch.setattr(backend, "unavailable", lambda device: f"it is no {device.type}'s")


@pytest.mark.usefixtures("on_a_cpu")
def test_info_says_once_why_a_backend_cannot_run(capsys) -> None:
    assert cli.main(["info", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("it is no cpu's") == 2  # triton and cuda
    assert printed.count("small calls to cuda and large ones to triton, and neither can run") == 1
    chosen = "chosen: reference (the first of triton+cuda, triton, cuda, reference that can run"
    assert chosen in printed


def test_info_says_who_named_a_backend(capsys, monkeypatch) -> None:
    monkeypatch.setenv("DFA_KERNELS_BACKEND", "reference")
    assert cli.main(["info", "--device", "cpu"]) == 0
    assert "chosen: reference (named by DFA_KERNELS_BACKEND)" in capsys.readouterr().out


@pytest.mark.usefixtures("on_a_cpu")
def test_check_says_that_it_was_told_which_backend(capsys) -> None:
    message = refused(capsys, "check", "--backend", "triton", "--device", "cpu")
    assert "backend 'triton', named by --backend, cannot run on cpu: it is no cpu's" in message


@pytest.mark.parametrize("command", ["info", "check", "train", "bench", "profile"])
def test_what_a_command_does_not_know_it_refuses_itself(capsys, command: str) -> None:
    message = refused(capsys, command, "--foo", "bar")
    assert message == (
        f"dfa-kernels {command}: unrecognized arguments: --foo bar; see dfa-kernels {command} "
        "--help\n"
    )
    assert refused(capsys, "--foo", command).startswith(
        "dfa-kernels: unrecognized arguments: --foo"
    )


@pytest.mark.parametrize("command", ["check", "profile", "bench"])
def test_help_explains_the_backend_of_two(capsys, command: str) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "triton+cuda (small calls by cuda, large ones by triton)" in said


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("gpu", "it is no device of torch's"),
        ("cuda:x", "it is no device of torch's"),
        ("", "it is no device of torch's"),
        ("privateuseone", "can compute nothing on privateuseone here"),
    ],
)
def test_a_device_that_is_not_there(capsys, device: str, why: str) -> None:
    for command in ("info", "check"):
        assert why in refused(capsys, command, "--device", device)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (AssertionError("Not compiled with it. Ensure you have `import it` first."),
         "cannot be used: Not compiled with it"),
        (RuntimeError("CUDA error: invalid device ordinal\nCompile with TORCH_USE_CUDA_DSA"),
         "cannot be used: CUDA error: invalid device ordinal"),
        (NotImplementedError("Could not run 'aten::empty' on 'CPU'. " + 1200 * "x"),
         f"cannot be used: torch {torch.__version__} can compute nothing on cpu here"),
        (RuntimeError("0 INTERNAL ASSERT FAILED at \"a.h\":3, please report a bug"),
         f"cannot be used: torch {torch.__version__} can compute nothing on cpu here"),
    ],
)  # fmt: skip
def test_torch_is_quoted_for_a_sentence_at_most(capsys, monkeypatch, raised, said: str) -> None:
    def refuses(*_, **__):
        raise raised

    monkeypatch.setattr(torch, "empty", refuses)
    assert refused(capsys, "info", "--device", "cpu").endswith(f"--device 'cpu' {said}\n")


def test_check_counts_what_passed(capsys, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        testing, "check_backend", lambda *args: asked.append(args) or ["one", "two"]
    )
    assert cli.main(["check", "--backend", "reference", "--device", "cpu"]) == 0
    assert asked == [("reference", torch.device("cpu"))]
    assert "'reference' on cpu: all 2 checks passed" in capsys.readouterr().out


def test_check_fails_with_status_1(capsys, monkeypatch) -> None:
    def fails(*_):
        raise AssertionError("project: 3 of 12 elements are off")

    monkeypatch.setattr(testing, "check_backend", fails)
    assert cli.main(["check", "--device", "cpu"]) == 1
    assert "FAILED: project: 3 of 12 elements are off" in capsys.readouterr().err


def test_a_backend_named_by_the_environment_that_does_not_exist(capsys, monkeypatch) -> None:
    monkeypatch.setenv("DFA_KERNELS_BACKEND", "nonsense")
    for arguments in (["info"], ["check"], ["train", "--out", "nowhere"]):
        printed = cli.main(arguments), capsys.readouterr().err
        assert printed[0] == 2 and "'nonsense'" in printed[1]
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("info --device nonsense", "--device 'nonsense' cannot be used"),
        ("check --backend nonsense", "unknown backend 'nonsense': registered are"),
        ("train --data mnist", "--data 'mnist' is unknown: known are digits, fashion-mnist"),
        ("train --data fashion-mnist", "needs --root DIR"),
        ("train --data fashion-mnist --root nowhere", "--root nowhere is not a folder"),
        ("train --method dfa magic", "--method 'magic' is unknown: known are dfa, bp, shallow"),
        ("train --hidden 256y2", "--hidden '256y2' is not a list of widths"),
        ("train --hidden 0x2", "--hidden '0x2'"),
        ("train --activation step", "--activation 'step' is unknown"),
        ("train --optimizer lion", "--optimizer 'lion' is unknown: known are adamw, sgd"),
        ("train --lr fast", "--lr 'fast' is not a learning rate"),
        ("train --lr -1", "--lr of dfa must be finite and above 0, got -1"),
        ("train --lr nan", "got nan"),
        ("train --lr 1 2", "two rates"),
        ("train --method bp --lr dfa=1", "--lr 'dfa' is unknown: known are bp"),
        ("train --epochs 0", "--epochs must be at least 1, got 0"),
        ("train --epochs many", "invalid int value: 'many'"),
        ("train --batch 0", "--batch must be at least 1, got 0"),
        ("train --seeds 0", "--seeds must be at least 1, got 0"),
        ("train --seed -1", "--seed must be in"),
        ("train --distribution cauchy", "known are rademacher, uniform, normal"),
        ("train --dtype int8", "--dtype 'int8' is unknown"),
        ("train --device nonsense", "--device 'nonsense' cannot be used"),
        ("train --device meta", "holds no numbers"),
        ("train --resume", "checkpoint.pt does not exist: there is nothing to resume"),
        ("train --resume --overwrite", "not allowed with argument"),
        ("train --out file", "--out file is a file, not a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    capsys, monkeypatch, tmp_path: Path, arguments: str, message: str
) -> None:
    if arguments.startswith("train"):
        for needed in ("matplotlib", "rich", "sklearn"):
            pytest.importorskip(needed, reason="needs the extra: dfa_kernels[train]")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert message in refused(capsys, *arguments.split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "sklearn" else object())
    message = refused(capsys, "train")
    assert 'scikit-learn: pip install "dfa_kernels[train]"' in message


def test_the_command_line_needs_none_of_the_extras() -> None:
    code = "import sys, dfa_kernels.cli as c; c.main(['info']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd(),
        env={**__import__("os").environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    modules = done.stdout.splitlines()[-1]
    for extra in ("matplotlib", "rich", "sklearn"):
        assert f"'{extra}'" not in modules


def test_hidden_and_lr_are_read() -> None:
    assert parse_hidden("1024x4") == (1024,) * 4
    assert parse_hidden("512,256x2") == (512, 256, 256)
    for text in ("", "x", "3x", "-3", "3x0", "1e3", "3,,4"):
        with pytest.raises(InputError, match="--hidden"):
            parse_hidden(text)
    assert parse_lr(["1e-3", "bp=3e-4"]) == {"": 1e-3, "bp": 3e-4}
    options = Options.resolve({"lr": parse_lr(["1e-2", "bp=3e-4"]), "method": ["bp", "dfa"]})
    assert options.lr == {"dfa": 1e-2, "bp": 3e-4} and options.method == ("dfa", "bp")
