"""A config may come from anybody. Truth: what it names beyond a model's parts is refused, and said with its key."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from arguments import get_args
from cogvideox.config import allowed_modules, instantiate, resolve_target
from cogvideox.config.bounds import read_limited
from cogvideox.config.resumed import _differences
from cogvideox.config.secrets import is_secret
from cogvideox.config.settings import Settings
from cogvideox.config.trust import fault_of_name
from cogvideox.data.shards import find_shards
from cogvideox.data.tars import ShardReader
from cogvideox.errors import UserError, config_without_credentials, shown
from data_video import VideoDataset
from tests.data.shard_files import write_shards
from train_video import save_training_config

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; what runs by mistake leaves `evil` there."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allowed_modules, "names", [])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words: str, config: str | None = None) -> str:
    """The message for the quickstart config with more words, and a file after it."""
    files = [QUICKSTART]
    if config is not None:
        Path("more.yaml").write_text(config)
        files.append("more.yaml")
    with pytest.raises(UserError) as caught:
        get_args(["--base", *files, *words])
    return str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.exec",
        "subprocess.Popen",
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load_inline",
        "torch.utils.cpp_extension.BuildExtension",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "torch.utils.tensorboard.SummaryWriter",
        "torch.package.PackageImporter",
        "torch.jit.CompilationUnit",
        "torch._C.PyTorchFileWriter",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.functional.Callable",
        "torch.nn.functional.conv2d",
        "torch.nn.init.normal_",
        "torch.nn.utils.rnn.PackedSequence",
        "sat.helpers.print_rank0",
        "sat.training.model_io.load_checkpoint",
        "sat.model.base_model.argparse",
        "sat.model.registry.Registry",
        "cogvideox.telemetry.report.os.system",
        "cogvideox.sat_bridge.verification.subprocess.run",
        "cogvideox.sat_bridge.verification.ask",
        "cogvideox.config.load.Path",
        "cogvideox.data.tars.ShardReader",
        "cogvideox.data.streaming.VideoDataset",
        "data_video.VideoDataset",
        "cogvideox./etc/passwd.X",
        "cogvideox..errors.UserError",
        "tools.fetch_weights.Places",
    ],
)
def test_what_is_no_part_of_a_model_is_not_made(path: str, place: Path) -> None:
    with pytest.raises(UserError, match="target"):
        instantiate({"target": path, "params": {"path": "pipe:touch evil", "image_size": [32, 48]}})
    assert not list(place.iterdir())


def test_what_an_allowed_module_imported_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    module = ModuleType("my_rooms")
    exec("class Room:\n    size = 1\ndef make():\n    return 1\n", vars(module))
    vars(module).update(Popen=subprocess.Popen, system=__import__("os").system, ready=module.Room())
    monkeypatch.setitem(sys.modules, "my_rooms", module)
    allowed_modules.allow("my_rooms")
    assert resolve_target("my_rooms.Room") is module.Room and resolve_target("my_rooms.make") is module.make
    for name in ("Popen", "system", "ready"):
        with pytest.raises(UserError, match="in the module that defines it"):
            resolve_target(f"my_rooms.{name}")


def test_a_data_target_must_make_data_sets(place: Path) -> None:
    from cogvideox.config import data_set_class

    assert data_set_class({"target": "data_video.SFTDataset"}).__name__ == "SFTDataset"
    with pytest.raises(UserError, match="create_dataset_function"):
        data_set_class({"target": "torch.nn.Identity"})


def test_a_command_is_for_those_who_type_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(config="args:\n  train_data: ['pipe:touch evil']\n  valid_data: [a.tar, ' pipe:touch evil']\n")
    assert said.count("is a command, and a config file may come from anybody") == 2
    assert "more.yaml:2" in said and "with `--train-data`" in said and "with `--valid-data`" in said
    with pytest.raises(SystemExit):
        get_args(["--base", QUICKSTART, "--train-data", "pipe:touch evil", "--explain", "args.train_data"])
    for source in ("a.tar,pipe:touch evil", "{pipe,x}:touch evil", "reference://h/x.json", "ssh://h/x.tar"):
        with pytest.raises(UserError, match="the shards to stream"):
            find_shards(source)
    assert [path.name for path in place.iterdir()] == ["more.yaml"]


def test_a_command_is_not_read_by_a_shell(place: Path) -> None:
    write_shards(place / "shards", (2,))
    (place / "shards/000.tar").rename(place / "a $(touch evil);.tar")
    stream: dict[str, Any] = {"image_size": [32, 48], "num_frames": 5, "fps": 8}
    assert len(VideoDataset("pipe:cat 'a $(touch evil);.tar'", **stream)) == 2
    for command in ("pipe:cat x; touch evil", "pipe:", "pipe:cat 'x", "pipe:true > evil"):
        with pytest.raises(UserError):
            VideoDataset(command, **stream)
    assert ShardReader()._broken == set() and not (place / "evil").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/x", "..", ".", "", "a\nb", "a\x1b[2J", "-rf", "x" * 201])
def test_a_run_is_named_by_one_name(name: str) -> None:
    assert fault_of_name(name)
    said = refused(config=yaml.safe_dump({"args": {"experiment_name": name}}))
    assert "args.experiment_name" in said and "give letters" in said


def test_modules_that_deepspeed_would_import() -> None:
    key = "deepspeed.torch_autocast.lower_precision_safe_modules"
    assert "name classes of torch.nn only" in refused(f"{key}=[antigravity.X]")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "MY_SECRETS"])
def test_secrets_of_the_environment_stay_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hush")
    for text in (f"${{oc.env:{name}}}", f"x-${{oc.env:{name},default}}", "${oc.env:${args.wandb_project_name}}"):
        said = refused(config=f"args:\n  experiment_name: '{text}'\n  wandb_project_name: {name}\n")
        assert f"{name} is a secret by its name" in said and "hush" not in said


def test_other_variables_are_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PLACE", "here")
    Path("more.yaml").write_text("args:\n  experiment_name: ${oc.env:PLACE}-${oc.env:ABSENT,there}\n")
    with pytest.raises(SystemExit):
        get_args(["--base", QUICKSTART, "more.yaml", "--explain", "args.experiment_name"])
    assert "here-there" in capsys.readouterr().out
    assert not any(map(is_secret, ("PWD", "HOME", "SSH_AUTH_SOCK", "KEYBOARD", "TOKENIZERS_PARALLELISM")))


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("s3://me:hush@store/a.tar", "s3://***@store/a.tar"),
        ("s3://ME:hu/sh+hush@store/{0..9}.tar", "s3://***@store/{0..9}.tar"),
        ("https://hush@host/a?x=1&X-Amz-Signature=hush&y=2", "https://***@host/a?x=1&X-Amz-Signature=***&y=2"),
        ("pipe:curl -s https://u:hush@h/a.tar", "pipe:curl -s https://***@h/a.tar"),
        ("http://localhost:8080/a@b.tar", "http://localhost:8080/a@b.tar"),
        ("/data/me@home/a:b.tar", "/data/me@home/a:b.tar"),
    ],
)
def test_credentials_in_addresses_are_neither_shown_nor_written(address: str, kept: str, place: Path) -> None:
    from argparse import Namespace

    assert shown(address) == kept and str(UserError(f"no {address}")) == f"no {kept}"
    config = {"args": {"train_data": [address]}, "n": 1.5}
    save_training_config(Namespace(save=str(place / "run"), merged_config=config))
    assert yaml.safe_load((place / "run/training_config.yaml").read_text()) == config_without_credentials(config)
    assert config_without_credentials(config) == {"args": {"train_data": [kept]}, "n": 1.5}


def test_credentials_that_were_not_written_are_no_change_when_a_run_is_resumed() -> None:
    now, before = ({"args": {"train_data": [f"s3://{login}@store/a.tar"]}} for login in ("me:hush", "***"))
    assert not list(_differences(Settings(now), Settings(before), ("args.train_data",)))
    before["args"]["train_data"][0] += "x"
    assert len(list(_differences(Settings(now), Settings(before), ("args.train_data",)))) == 1


def test_a_full_disk_at_the_first_step_is_told(place: Path) -> None:
    from argparse import Namespace

    (place / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write run/training_config.yaml"):
        save_training_config(Namespace(save="run", merged_config={}))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (BOMB, "values, at most 100,000 are taken"),
        ("args: &a\n  x: *a\n", "contains itself (line 1)"),
        ("args: " + "[" * 300 + "]" * 300, "nested deeper than 100 levels"),
        ("args: " + "[" * 30_000, "is nested too deep"),
        ("args: !!binary aGk=\nx: !!python/name:os.system ''\n", "could not determine a constructor"),
        ("args: !!timestamp nonsense", "not valid YAML"),
    ],
)
def test_bombs_in_yaml(text: str, what: str) -> None:
    began = time.monotonic()
    said = refused(config=text)
    assert what in said and "more.yaml" in said, said
    assert time.monotonic() - began < 10


def test_configs_that_are_no_files(place: Path) -> None:
    (place / "loop.yaml").symlink_to(place / "loop.yaml")
    (place / "endless.yaml").symlink_to("/dev/zero")
    for name in ("loop.yaml", "endless.yaml"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            get_args(["--base", name])
    with pytest.raises(OSError, match="at most 3 are read"):
        read_limited(Path(QUICKSTART), 3)
    (place / "deep.json").write_text("[" * 100_000)
    assert "deep.json" in refused("--deepspeed-config", "deep.json")
    assert json.loads("[1]") == [1]
