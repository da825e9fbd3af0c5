"""The command line as it is used: every verb, and every mistake in one line."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import lmloop
from lmloop import cli
from lmloop.cli import app
from lmloop.sections import ServeConfig
from lmloop.upkeep import MonitorConfig

from .conftest import Walked, write_recipe

VERBS = (
    *("run", "prepare", "tokenize", "pretrain", "finetune", "evaluate", "compress"),
    *("generate", "serve", "monitor", "review", "update", "rollback", "loop"),
    *("gc", "reindex", "forget", "show", "plan", "pull", "export", "vectors", "tune", "runs"),
)


class Call:
    """`lmloop ARGUMENTS` in this process: what it wrote, and how it ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["lmloop", *map(str, arguments)])
        self._capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *self._capsys.readouterr()

    def refused(self, *arguments: object) -> str:
        """The one line of a user's mistake."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"lmloop: [^\n]+\n", err), err
        return err.removeprefix("lmloop: ").strip()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.setattr("lmloop.stages.tune", lambda: None)
    monkeypatch.setattr("lmloop.config.silence_telemetry", lambda: None)
    monkeypatch.setattr("lmloop.config.calm_threads", lambda: None)
    return Call(monkeypatch, capsys)


def run_python(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_help_lists_every_verb_with_one_line(call: Call) -> None:
    code, out, _ = call("--help")
    listed = re.findall(r"^  ([a-z]+)  +\S.*$", out.partition("Commands:")[2], re.MULTILINE)
    assert code == 0
    assert tuple(listed) == VERBS == tuple(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_its_options(call: Call, verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"lmloop {verb} " in out.splitlines()[0]
    undescribed = [
        option.name
        for option in get_command(app).commands[verb].params  # type: ignore[attr-defined]
        if not getattr(option, "help", "") and option.name != "help"
    ]
    assert undescribed == []


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from lmloop import cli
sys.argv = ["lmloop", "--help"]
try:
    cli.main()
except SystemExit:
    pass
heavy = {"torch", "pydantic", "numpy", "daft", "tokenizers", "sqlalchemy", "fastapi", "pyarrow"}
print("heavy:", sorted(heavy & {*sys.modules}))
"""
    assert run_python(code).splitlines()[-1] == "heavy: []"


def test_a_walk_over_finished_work_does_not_import_torch(walked: Walked) -> None:
    code = """
import sys
from lmloop import cli
sys.argv = ["lmloop", "run", sys.argv[1], "--home", sys.argv[2], "--no-serve"]
sys.stderr = sys.stdout
cli.app(standalone_mode=False)
print("heavy:", sorted({"torch", "daft", "tokenizers"} & {*sys.modules}))
"""
    out = run_python(code, str(walked.recipe), str(walked.home))
    assert out.count("already made") == 6
    assert out.splitlines()[-1] == "heavy: []"


def test_a_mistake_in_a_recipe_is_one_line_that_names_the_nearest(
    call: Call, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    text = recipe.read_text()
    for wrong, near in (
        (text.replace("min_turns", "x") + "\n[preten]\nsteps = 3\n", "preten"),
        (text.replace("vocab_size", "vocab_sise"), "tokenize.vocab_size"),
        (text.replace("steps = 12", 'steps = "12"'), "pretrain.steps"),
        (text.replace("[model]", "[model"), "no valid TOML"),
        (text.replace('name = "tiny"', ""), "name"),
    ):
        recipe.write_text(wrong)
        assert near in call.refused("run", recipe, "--home", tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("verb", ["run", "prepare", "pretrain", "plan"])
def test_an_unknown_key_on_the_command_line_is_one_line(
    call: Call, tmp_path: Path, verb: str
) -> None:
    recipe = write_recipe(tmp_path)
    told = call.refused(verb, recipe, "--pretrain.stepz=3")
    assert told.endswith("unknown key pretrain.stepz; did you mean pretrain.steps?")


def test_a_recipe_that_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    told = call.refused("run", tmp_path / "no.toml")
    assert told.startswith(f"recipe {tmp_path / 'no.toml'} cannot be read (No such file")


def test_a_source_that_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "talks.jsonl").unlink()
    assert "talks.jsonl" in call.refused("prepare", recipe, "--home", tmp_path / "home")
    assert not (tmp_path / "home" / "artifacts").exists()


def test_a_corpus_too_small_for_the_vocabulary_is_told_and_leaves_no_part(
    call: Call, tmp_path: Path
) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    code, out, err = call("tokenize", recipe, "--home", home, "--tokenize.vocab_size=50000")
    assert (code, out) == (2, "")
    made, told = err.splitlines()
    assert made.startswith("prepare: made corpus")
    assert told.endswith("asks for tokenize.vocab_size = 50000: add text or lower it")
    assert [path.name[:7] for path in (home / "artifacts").iterdir()] == ["prepare"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "nothing"), "no live model called nothing; live are: tiny"),
        (("serve", "nothing"), "no live model called nothing; live are: tiny"),
        (("export", "nothing", "out"), "no live model called nothing; live are: tiny"),
        (("generate", "hi", "--model", "nothing"), "no live model called nothing; live are: tiny"),
        (("generate", "word " * 900, "--model", "tiny"), "this model's context holds 64"),
    ],
)
def test_a_name_or_a_prompt_that_cannot_be_used_is_one_line(
    call: Call, walked: Walked, arguments: tuple[str, ...], told: str
) -> None:
    assert told in call.refused(*arguments, "--home", walked.home)


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("run",),
        ("generate", "hi", "--temperature", "9"),
        ("generate", "hi", "--max-tokens", "0"),
        ("generate", "hi", "--seed", "-1"),
        ("serve", "--port", "70000"),
        ("serve", "--port", "many"),
    ],
)
def test_a_wrong_call_is_told_without_a_traceback(call: Call, arguments: tuple[str, ...]) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_verb_prints_where_its_artifact_lies(call: Call, walked: Walked) -> None:
    for verb in ("tokenize", "finetune", "evaluate"):
        code, out, err = call(verb, walked.recipe, "--home", walked.home)
        assert (code, out) == (0, f"{walked.made.artifacts[verb].path}\n")
        assert "already made" in err


def test_show_prints_the_ancestry(call: Call, walked: Walked) -> None:
    code, out, err = call("show", "--home", walked.home)
    assert (code, err) == (0, "")
    first, second, *_ = out.splitlines()
    assert first == f"live model tiny  generation 1, code {walked.made.live.code_version}"
    assert str(walked.made.live) in second
    assert "talks.jsonl" in out


def test_generate_prints_an_answer_that_a_seed_repeats(call: Call, walked: Walked) -> None:
    arguments = ("generate", "hello", "--home", walked.home, "--seed", 4, "--max-tokens", 9)
    one, again = call(*arguments), call(*arguments)
    assert one == again
    assert (one[0], one[2]) == (0, "")
    raw = call(*arguments, "--raw")
    assert raw[0] == 0


def test_export_prints_the_folder(call: Call, walked: Walked, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert call("export", "tiny", target, "--home", walked.home) == (0, f"{target}\n", "")
    assert (target / "model.safetensors").is_file()
    assert "exists" in call.refused("export", "tiny", target, "--home", walked.home)


def test_export_writes_a_file_for_llama_cpp(
    call: Call, model_folder: Path, walked: Walked, tmp_path: Path
) -> None:
    target = tmp_path / "sea.gguf"
    asked = ("export", model_folder, target, "--format", "gguf")
    code, printed, told = call(*asked, "--type", "F16")
    assert (code, printed) == (0, f"{target}\n")
    assert told.startswith("logits differ by at most 0.0")
    assert lmloop.load(target).config == lmloop.load(model_folder).config
    assert "exists: name a file that does not" in call.refused(*asked)
    other = tmp_path / "other"
    assert call("export", target, other, "--format", "gguf")[:2] == (0, f"{other}\n")
    assert [path.name for path in other.iterdir()] == ["sea-Q8_0.gguf"]


def test_export_writes_a_graph(call: Call, model_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "sea.onnx"
    code, printed, told = call("export", model_folder, target, "--format", "onnx")
    assert (code, printed) == (0, f"{target}\n")
    assert "the same likeliest token at 100%" in told
    assert target.read_bytes().startswith(b"\x08")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--format", "onnx"), "8 bits do not leave as ONNX"),
        (("--format", "gguf"), "8-bit weights would be rounded a second time"),
        (("--format", "gguf", "--type", "Q6_K"), "the type 'Q6_K' cannot be written: allowed are"),
        (("--format", "bin"), "the format 'bin' is not written: allowed are hf, gguf, onnx"),
        (("--type", "F16"), "F16 is a type of GGUF weights: add --format gguf"),
    ],
)
def test_what_cannot_be_exported_is_told(
    call: Call, walked: Walked, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    target = tmp_path / "out"
    assert told in call.refused("export", "tiny", target, "--home", walked.home, *options)
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_a_table(call: Call, walked: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.training.plan.CALIBRATION_SECONDS", 0.01)
    code, out, err = call("plan", walked.recipe)
    assert (code, err) == (0, "")
    for part in ("parameters", "tokens/s", "pretrain", "finetune"):
        assert part in out


@pytest.mark.parametrize("serve", [True, False])
def test_a_walk_ends_in_the_server_unless_told_otherwise(
    call: Call, walked: Walked, monkeypatch: pytest.MonkeyPatch, serve: bool
) -> None:
    served: list[dict[str, Any]] = []

    def spy(name: object, *, on_ready: Callable[[str], None], **rest: Any) -> None:
        served.append(rest | {"name": name})
        on_ready("http://127.0.0.1:1234")

    monkeypatch.setattr("lmloop.api.serve", spy)
    options = ["--serve.port=1234"] if serve else ["--no-serve"]
    code, out, _ = call("run", walked.recipe, "--home", walked.home, *options)
    assert code == 0
    if not serve:
        assert (served, out) == ([], "")
        return
    assert out == "\nReady: chat at http://127.0.0.1:1234 (Ctrl-C stops the server)\n\n"
    assert served == [
        {
            "name": "tiny",
            "home": walked.home,
            "config": ServeConfig(port=1234),
            "monitor": MonitorConfig(),
        }
    ]


def test_serve_takes_host_and_port(
    call: Call, walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ServeConfig] = []
    monkeypatch.setattr("lmloop.api.serve", lambda name, config, **rest: asked.append(config))
    call("serve", "tiny", "--home", walked.home)
    call("serve", "tiny", "--home", walked.home, "--host", "0.0.0.0", "--port", 0)
    assert asked == [ServeConfig(), ServeConfig(host="0.0.0.0", port=0)]


@pytest.mark.parametrize("code", ["ENOSPC", "EROFS", "EACCES", "EDQUOT"])
def test_a_disk_that_cannot_be_written_is_one_line(
    call: Call, walked: Walked, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    number = getattr(errno, code)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr("lmloop.api.show", fail)
    assert call.refused("show", "--home", walked.home) == f"{os.strerror(number)}: somewhere"


def test_an_error_of_our_own_is_no_users_mistake(
    call: Call, walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lmloop.api.show", fail)
    with pytest.raises(ZeroDivisionError):
        call("show", "--home", walked.home)


def test_an_artifact_with_a_flipped_byte_is_refused_and_the_file_named(
    call: Call, walked: Walked, tmp_path: Path
) -> None:
    shutil.copytree(walked.home, tmp_path / "home")
    (path,) = (tmp_path / "home" / "artifacts").glob("pretrain-*/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    told = call(*("finetune", walked.recipe, "--home", tmp_path / "home", "--finetune.steps=3"))
    assert told[0] == 2
    assert told[2].splitlines()[-1].startswith(f"lmloop: {path} changed since it was written")


def test_pull_without_a_name_lists_names_sizes_licences_and_what_they_are(call: Call) -> None:
    code, out, err = call("pull")
    assert (code, err) == (0, "")
    assert re.search(r"^smollm2-135m-instruct +98\.4 MB +Apache-2\.0 +chat decoder", out, re.M)
    assert len(out.splitlines()) == 3


def test_pull_prints_the_folder_and_says_the_licence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmloop.store import pull
    from lmloop.store.catalogue import Entry, Hub, WeightFile

    empty = WeightFile(name="w.bin", bytes=0, sha256=hashlib.sha256(b"").hexdigest())
    hub = Hub(repository="someone/tiny", revision="c" * 40)
    entry = Entry(name="tiny", what="w", licence="MIT", files=(empty,), hub=hub, package=None)

    def fetch(entry: Entry, folder: Path, *_: object) -> dict[str, str]:
        (folder / "w.bin").touch()
        return {"kind": "raw", "fingerprint": "f" * 64, "source": str(entry.hub)}

    monkeypatch.setattr(pull, "read_catalogue", lambda: {"tiny": entry})
    monkeypatch.setattr(pull, "fetch_hub", fetch)
    code, out, err = call("pull", "tiny", "--home", tmp_path / "home")
    assert code == 0
    assert (Path(out.strip()) / "w.bin").is_file()
    assert err.splitlines()[0] == "tiny: w; licence: MIT"
    monkeypatch.setattr(pull, "fetch_hub", lambda *_: pytest.fail("it was fetched again"))
    assert call("pull", "tiny", "--home", tmp_path / "home")[:2] == (0, out)


def test_pull_of_an_unknown_name_is_one_line(call: Call, tmp_path: Path) -> None:
    told = call.refused("pull", "smollm", "--home", tmp_path / "home")
    assert told.startswith("no weights are called smollm; did you mean smollm2-")
    assert "all-minilm-l6-v2" in told
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lmloop", "pretrain", str(recipe), "--home", str(home)),
            "--pretrain.steps=1000000",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + 60
        while not list((home / "runs").glob("*/journal.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("lmloop: interrupted; what is finished stays")
    assert "Traceback" not in err


def test_vectors_are_trained_asked_and_mistakes_told(call: Call, tmp_path: Path) -> None:
    text, file = tmp_path / "text.txt", tmp_path / "words.vec"
    text.write_text("the wide sea\n" * 20)
    sizes = ("--dimensions", 4, "--epochs", 1)
    code, out, _ = call("vectors", file, "--train", text, *sizes, "--nearest", "sea")
    assert code == 0
    assert re.match(r".*words\.vec: 3 words of 4 numbers\nsea\n +-?0\.\d{3}  \w+\n", out)
    code, out, _ = call("vectors", file, "--analogy", "the wide sea", "--nearest", "the")
    assert (code, out.splitlines()[0]) == (0, "the")
    before = file.read_bytes()
    assert "did you mean 'sea'" in call.refused("vectors", file, "--nearest", "sae")
    assert "needs --train" in call.refused("vectors", file, "--window", 3)
    assert "absent.vec" in call.refused("vectors", tmp_path / "absent.vec")
    assert "min_count" in call.refused("vectors", file, "--train", text, "--min-count", 99)
    assert file.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"text.txt", "words.vec"}
