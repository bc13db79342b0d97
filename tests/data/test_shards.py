"""Truths: what a user may write for shards, and what a list that came with a download may not."""

from __future__ import annotations

import shlex
import threading
from pathlib import Path

import fsspec
import pytest

from cogvideox.data.shards import find_shards
from cogvideox.errors import UserError
from tests.data.shard_files import clip_bytes, sample, write_shards, write_tar
from tests.data.test_streaming import captions, stream


def names(sources: object, include_dirs: str | None = None) -> list[str]:
    return [Path(each.name).name for each in find_shards(str(sources), include_dirs)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/000.tar", "a/001.tar", "a/deep/x.tar", "b/002.tar"):
        write_tar(tmp_path / name, {"k.txt": b"text"})
    (tmp_path / "a/.hidden.tar").write_bytes(b"x")
    (tmp_path / "a/empty.tar").write_bytes(b"")
    return tmp_path


def test_forms(folder: Path) -> None:
    """Reference: bash's braces; a folder's files in order."""
    assert names(folder / "a/000.tar") == ["000.tar"]
    assert names(folder / "a") == ["000.tar", "001.tar", "x.tar"]
    assert names(folder / "a/{000..001}.tar") == ["000.tar", "001.tar"]
    assert names(f"{folder}/{{a/000,b/002}}.tar,{folder}/a/001.tar") == ["000.tar", "002.tar", "001.tar"]
    assert names("", f"{folder}/b*2,{folder}/a/deep") == ["002.tar", "002.tar", "x.tar"]
    assert names(f";{folder}/b") == ["002.tar"]
    assert [each.place for each in find_shards("http://h/{1..2}.tar")] == ["http://h/1.tar", "http://h/2.tar"]
    assert [each.place for each in find_shards("pipe:echo a,b; cat {1..2}.tar")] == [
        f"pipe:echo a,b; cat {n}.tar" for n in (1, 2)
    ]


def test_links_to_folders_are_followed_and_loops_end(folder: Path) -> None:
    """Identity: each real folder once, as a folder of clips is walked; hidden folders are left out."""
    (folder / "c").mkdir()
    (folder / "c/more").symlink_to(folder / "b")
    (folder / "c/loop").symlink_to(folder / "c")
    write_tar(folder / "c/.trash/003.tar", {"k.txt": b"text"})
    assert names(folder / "c") == ["002.tar"]


def test_a_link_that_leads_nowhere_is_told(folder: Path) -> None:
    """Golden value, beside what else is missing."""
    (folder / "a/lost.tar").symlink_to(folder / "gone.tar")
    with pytest.raises(
        UserError, match=r"a/lost.tar is no file, or a link that leads to none; there is no .*/none.tar"
    ):
        find_shards(f"{folder}/a,{folder}/none.tar")


def test_names_that_are_too_long_for_a_file_are_told(folder: Path) -> None:
    """Golden values: a long list with commas is read; one long name is missing, in a list file too."""
    many = ",".join([str(folder / "a/000.tar")] * 300)
    assert len(many) > 4096 and len(names(many)) == 300
    long = "x" * 300 + ".tar"
    (folder / "shards.txt").write_text(long)
    for sources in (long, f"{long},{long}", str(folder / "shards.txt")):
        with pytest.raises(UserError, match=f"there is no .*{long}"):
            find_shards(sources)


def test_addresses_are_named_without_their_secrets() -> None:
    assert find_shards("https://me:secret@h/a/1.tar?signature=x")[0].name == "https://h/a/1.tar"


def test_everything_missing_is_told_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_shards(f"{folder}/a/{{000..003}}.tar,{folder}/none", f"{folder}/gone,{folder}/b*x")
    for part in ("a/002.tar", "a/003.tar", "there is no", "/none", "no folder", "/gone", "b*x"):
        assert part in str(caught.value)
    assert "000.tar" not in str(caught.value).replace("{000..123}.tar", "")
    for sources, part in (("", "names no shard"), ("{a.tar", "a.tar"), (f"{folder}/a/x.tar.gz", "there is no")):
        with pytest.raises(UserError, match=part):
            find_shards(sources)


def test_a_list_names_files_below_it_or_absolute_ones_but_no_commands(folder: Path) -> None:
    shards = folder / "shards.txt"
    shards.write_text(f"# mine\na/000.tar\n\n{folder}/b/002.tar\nhttps://h/9.tar\n")
    assert names(shards) == ["000.tar", "002.tar", "9.tar"]
    shards.write_text("pipe:touch evil\nfile:///etc/x.tar\na/../../up.tar\n")
    with pytest.raises(UserError) as caught:
        find_shards(str(shards))
    assert all(f"line {number}" in str(caught.value) for number in (1, 2, 3))
    assert not (folder / "evil").exists()


def test_shards_from_commands_and_stores_give_the_same_samples(tmp_path: Path) -> None:
    """Identity: local files, `cat` of them, and fsspec's memory store."""
    shards = write_shards(tmp_path / "shards")
    local = stream(shards)
    copies = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        copies.pipe_file(f"/store/{path.name}", path.read_bytes())
    command = f"pipe:cat {shlex.quote(str(shards))}/{{000..003}}.tar"
    for other in (stream(command), stream("memory://store/{000..003}.tar")):
        assert captions(other) == captions(local)
    assert threading.active_count() < 20


def test_a_shard_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample("a", clip_bytes(tmp_path)))
    dataset = stream(f"{tmp_path}/a.tar,memory://store/none.tar")
    assert [each.kind for each in dataset.left_out] == ["damaged shards"] and captions(dataset) == ["a"]
    with pytest.raises(UserError, match="its command failed"):
        stream("pipe:false")
