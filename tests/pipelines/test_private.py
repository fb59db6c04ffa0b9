"""What looks private in a text, and what does not."""

import pytest

from turbovaed_cli.pipelines.private import private_texts


def found(folder, text, name="README.md", **options):
    (folder / name).write_text(text)
    return [(one.file, one.text) for one in private_texts(folder, **options)]


@pytest.mark.parametrize(
    "text",
    [
        "/home/jane/vae", "in (/mnt/disk/a.mp4)", '{"teacher": "/tmp/pytest-1/vae"}', "file:///srv/data/x", "~/videos", "~jane/videos/a",
        "C:\\Users\\jane\\a.mp4", '"C:\\\\Users\\\\jane"', "D:/films/b.mkv", "\\\\server\\share", "`/root/x`", "=/work/runs/a",
        "hf_" + "B" * 34,
    ],
)  # fmt: skip
def test_paths_and_tokens_are_found(text, tmp_path):
    assert len(found(tmp_path, f"Some words {text} and more.")) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/user/name", "and/or", "8x32x32 / 4", "user/name", "eval/a-17x256x256-standard.json", "m/s/s", "1/2",
        "</a></b>", "/proc/meminfo", "[page](../reference/files.md)", "arXiv:2508.09136", "in [-1, 1]; 4x", "a: b", "Note: c/d", "hf_hub",
    ],
)  # fmt: skip
def test_links_and_words_are_not(text, tmp_path):
    assert found(tmp_path, f"Some words {text} and more.") == []


def test_the_name_of_the_user_is_found_as_a_word_and_in_file_names(tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "janedoe")
    assert found(tmp_path, "by janedoe") == [("README.md", "janedoe")]
    assert found(tmp_path, "by janedoe", public="janedoe/student") == []
    assert found(tmp_path, "by janedoe", allowed=("janedoe",)) == []
    assert found(tmp_path, "by janedoes") == []
    assert found(tmp_path, "nothing", "janedoe-17x256.json") == [("janedoe-17x256.json", "janedoe")]
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    (tmp_path / "janedoe-17x256.json").unlink()
    assert found(tmp_path, "the root of the folder") == []
